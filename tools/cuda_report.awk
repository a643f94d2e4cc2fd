# Makes a table of what `ptxas -v` says of kernels.
#
# Input: for each operation a line "operation NAME", then ptxas's output with demangled names. Output: a row for each
# kernel and for each function that was not inlined, then a summary. The exit code is 1 when one spills registers to
# local memory. A stack frame without spills (an array that is indexed at run time) is only marked: *.

# "void a::(anonymous namespace)::K<64, (a::D)1>(float*)" becomes "K<64, (D)1>".
function short(name,    i, c, depth, last_space) {
  gsub(/\(anonymous namespace\)::/, "", name)
  gsub(/[A-Za-z_0-9]+::/, "", name)
  depth = last_space = 0
  for (i = 1; i <= length(name); i++) {
    c = substr(name, i, 1)
    if (c == "<") depth++
    if (c == ">") depth--
    if (depth == 0 && c == " ") last_space = i
    if (depth == 0 && c == "(") return substr(name, last_space + 1, i - last_space - 1)
  }
  return substr(name, last_space + 1)
}

function number_before(text,    n, words) {
  n = index($0, text)
  if (n == 0) return 0
  n = split(substr($0, 1, n - 1), words, " ")
  return words[n] + 0
}

function row_of(name) {
  if (!((operation, name) in rows)) {
    rows[operation, name] = ++num_rows
    operation_of[num_rows] = operation
    name_of[num_rows] = short(name)
    if (length(operation) > operation_width) operation_width = length(operation)
    if (length(name_of[num_rows]) > name_width) name_width = length(name_of[num_rows])
  }
  return rows[operation, name]
}

BEGIN { operation_width = length("operation"); name_width = length("kernel") }

/^operation / { operation = $2; next }

/Compiling entry function '/ {
  name = $0
  sub(/.*Compiling entry function '/, "", name)
  arch = name
  sub(/.*' for '/, "", arch)
  sub(/'.*/, "", arch)
  sub(/' for '.*/, "", name)
  entry = row_of(name)
  is_kernel[entry] = 1
  next
}

/Function properties for / {
  name = $0
  sub(/.*Function properties for /, "", name)
  current = row_of(name)
  next
}

/bytes stack frame/ {
  stack[current] = number_before(" bytes stack frame")
  stores[current] = number_before(" bytes spill stores")
  loads[current] = number_before(" bytes spill loads")
  next
}

/: Used [0-9]+ registers/ {
  registers[entry] = number_before(" registers")
  shared[entry] = number_before(" bytes smem")
}

END {
  layout = "%-" operation_width "s  %-" name_width "s  %9s %12s %11s %12s %7s\n"
  if (num_rows > 0)
    printf layout, "operation", "kernel", "registers", "spill stores", "spill loads", "shared bytes", "stack"
  for (i = 1; i <= num_rows; i++) {
    spills = stores[i] + loads[i] > 0
    mark = spills ? " spills" : stack[i] > 0 ? " *" : ""
    line = sprintf(layout, operation_of[i], name_of[i], is_kernel[i] ? registers[i] : "-", stores[i] + 0, loads[i] + 0,
      is_kernel[i] ? shared[i] : "-", stack[i] + 0)
    sub(/\n$/, mark "\n", line)
    printf "%s", line
    kernels += is_kernel[i]
    spilling += spills
    framed += !spills && stack[i] > 0
  }
  printf "%d kernels%s, %d with spills", kernels, arch == "" ? "" : " for " arch, spilling
  if (framed > 0) printf ", %d with a stack frame alone (*)", framed
  printf "\n"
  exit spilling > 0
}
