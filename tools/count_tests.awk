# Counts test cases of one `bazel test` run.
#
# Input: the lines of --build_event_json_file. Output, tab-separated:
#   case   LABEL  NAME     one line for each failed case; NAME is "(...)" when the binary as a whole failed
#   log    PATH            the log of each test run that failed
#   total  PASSED FAILED SKIPPED
#
# A GoogleTest binary counts as its cases, any other test as one. A binary that leaves no usable report (crash,
# time-out), that fails after its cases passed (leak check, data race) or that does not build counts as one failure.

function between(text, before, after,    start, rest) {
  start = index(text, before)
  if (start == 0) return ""
  rest = substr(text, start + length(before))
  return substr(rest, 1, index(rest, after) - 1)
}

function attribute(tag, name) { return between(tag, " " name "=\"", "\"") }

function fail(label, name) { failed++; print "case\t" label "\t" name }

function end_case() {
  if (case_name == "") return
  if (case_failed) fail(current, case_name)
  else if (case_skipped) skipped++
  else passed++
  if (case_failed) cases_failed++
  case_name = ""
}

# The text between CDATA marks is a test's own output: it may look like anything.
function without_cdata(line,    head, from, to) {
  head = ""
  while (1) {
    if (in_cdata) {
      to = index(line, "]]>")
      if (to == 0) return head
      line = substr(line, to + 3)
      in_cdata = 0
    }
    from = index(line, "<![CDATA[")
    if (from == 0) return head line
    head = head substr(line, 1, from - 1)
    line = substr(line, from + 9)
    in_cdata = 1
  }
}

# The case that was running when the binary died.
function last_started(log_path,    line, name) {
  name = ""
  while ((getline line < log_path) > 0) {
    if (line ~ /^\[ RUN      \] /) name = substr(line, 14)
    else if (line ~ /^\[       OK \] |^\[  FAILED  \] |^\[  SKIPPED \] /) name = ""
  }
  close(log_path)
  return name
}

function read_report(xml_path, log_path,    line, tag, running) {
  in_cdata = 0
  case_name = ""
  while ((getline line < xml_path) > 0) {
    line = without_cdata(line)
    if (line ~ /<testcase /) {
      end_case()
      tag = substr(line, index(line, "<testcase "))
      case_name = attribute(tag, "classname") "." attribute(tag, "name")
      case_failed = 0
      case_skipped = tag ~ / status="notrun"/
      if (attribute(tag, "classname") == "") {  # Bazel's own report of a binary that wrote none
        running = tag ~ /<error/ ? last_started(log_path) : ""
        case_name = running == "" ? "(exit status)" : "(died in " running ")"
      }
    }
    if (line ~ /<failure[ >]|<error[ >]/) case_failed = 1
    if (line ~ /<skipped[ >\/]/) case_skipped = 1
  }
  end_case()
  close(xml_path)
}

/^\{"id":\{"targetCompleted":/ {
  if ($0 !~ /"completed":\{"success":true/ && $0 !~ /"aborted":\{"reason":"SKIPPED"/)
    fail(between($0, "\"label\":\"", "\""), "(does not build)")
}

# A repeated attempt replaces the earlier one.
/^\{"id":\{"testResult":/ {
  label = between($0, "\"label\":\"", "\"")
  key = label " " between($0, "\"run\":", ",") " " between($0, "\"shard\":", ",")
  if (!(key in results)) order[++runs] = key
  results[key] = $0
}

END {
  for (i = 1; i <= runs; i++) {
    event = results[order[i]]
    current = between(event, "\"label\":\"", "\"")
    status = between(event, "\"status\":\"", "\"")
    log_path = between(event, "\"name\":\"test.log\",\"uri\":\"file://", "\"")
    cases_failed = 0
    read_report(between(event, "\"name\":\"test.xml\",\"uri\":\"file://", "\""), log_path)
    if (status != "PASSED" && cases_failed == 0) {
      fail(current, "(" status " although no case failed)")
      cases_failed++
    }
    if (cases_failed > 0 && log_path != "") print "log\t" log_path
  }
  print "total\t" passed + 0 "\t" failed + 0 "\t" skipped + 0
}
