#!/usr/bin/env bash
# Draws what `./wave report` measured. Usage: plot_report.sh FOLDER
# Reads decode.json and error_KIND.json of the folder, as Google Benchmark writes them; writes time.svg and error.svg.
set -euo pipefail
[[ $# -eq 1 && -d $1 ]] || { echo "usage: $0 FOLDER, which has decode.json or error_KIND.json" >&2; exit 2; }
readonly FOLDER=$1
WORK=$(mktemp -d)
readonly WORK
trap 'rm -rf "$WORK"' EXIT

# steps FILE PATTERN: a line "tokens ms percent_of_bytes percent_of_error name" of each benchmark of steps whose name,
# without its context, is of the pattern; by tokens, then bytes.
steps() {
  jq -r --arg pattern "$2" '
    {"ns": 1e-6, "us": 1e-3, "ms": 1, "s": 1e3} as $ms
    | [.benchmarks[] | select(.run_type == "iteration" and (.error_occurred | not))
        | . as $run
        | (.name | capture("^(?<what>.*)/tokens:(?<tokens>[0-9]+)/real_time$"))
        | select(.what | test("^(" + $pattern + ")$"))
        | [(.tokens | tonumber), $run.real_time * $ms[$run.time_unit], 100 * ($run.bytes_ratio // 1),
           100 * ($run.rel_err_mean // 0), .what]]
    | sort_by(.[0], .[2])[] | map(tostring) | join(" ")' "$1"
}

# What stands under a title: the machine and the layer, as the file names them.
describe() {
  jq -r '.context | "\(.cpu_model // "unknown processor"), \(.threads // .num_cpus) threads, \(.date[0:10])\\n" +
    "one layer, \(.layer // "unknown")"' "$1" | tr -d '"`'
}

# plot FILE TITLE: from the commands of standard input.
plot() {
  cat - >"$WORK/plot.gp" <<SETTINGS
set terminal svg size 900,620 enhanced font "sans-serif,15" background "#ffffff"
set output "$WORK/plot.svg"
set encoding utf8
set title "$2" noenhanced
set border 3 linecolor "#444444"
set tics nomirror textcolor "#222222"
set grid linecolor "#dddddd" linewidth 1
set key textcolor "#222222"
set style line 1 linecolor "#777777" linewidth 2 dashtype 2 pointtype 6 pointsize 0.5
set style line 2 linecolor "#c0392b" linewidth 2 pointtype 5 pointsize 0.6
set style line 3 linecolor "#2471a3" linewidth 2 pointtype 7 pointsize 0.6
set style line 4 linecolor "#1e8449" linewidth 2 pointtype 9 pointsize 0.8
cd "$WORK"
SETTINGS
  cat "$WORK/commands.gp" >>"$WORK/plot.gp"
  gnuplot "$WORK/plot.gp"
  mv "$WORK/plot.svg" "$FOLDER/$1"
  echo "wrote $FOLDER/$1"
}

# Lines of time.svg that have two points at least, with the exponent of their growth from 32K tokens on.
plot_time() {
  local json=$1 name style=0 title
  declare -A titles=(
    [stream]="reading K and V once"
    [dense]="exact attention"
    [wave_flat]="zones, every cluster ranked"
    [wave]="zones"
  )
  [[ -z $(steps "$json" wave_flat) ]] || titles[wave]="zones, ranked in two levels"
  {
    cat <<'COMMANDS'
set logscale x 2
set logscale y 10
set xlabel "context, tokens"
set ylabel "time of one decode step, ms"
set xtics ("1K" 1024, "2K" 2048, "4K" 4096, "8K" 8192, "16K" 16384, "32K" 32768, "64K" 65536, "128K" 131072, \
  "256K" 262144, "512K" 524288, "1M" 1048576, "2M" 2097152, "4M" 4194304)
set format y "%g"
set key top left reverse Left
COMMANDS
    for name in stream dense wave_flat wave; do steps "$json" "$name" >"$WORK/$name"; done
    echo "set xrange [$(range 1 1.3 "$WORK"/{stream,dense,wave})]"
    echo "set yrange [$(range 2 2 "$WORK"/{stream,dense,wave_flat,wave})]"
    printf 'plot \\\n'
    for name in stream dense wave_flat wave; do
      style=$((style + 1))
      [[ -s $WORK/$name ]] || continue
      title="${titles[$name]}$(growth <"$WORK/$name")"
      echo "  \"$name\" using 1:2 with linespoints linestyle $style title \"$title\", \\"
    done
    echo '  1/0 notitle'
  } >"$WORK/commands.gp"
  plot time.svg "Time of a decode step against the context\n$(describe "$json")"
}

# range COLUMN FACTOR FILE...: "low:high" of what stands there, and a margin of a factor.
range() {
  awk -v column="$1" -v factor="$2" '
    { if (!n++ || $column < low) low = $column; if ($column > high) high = $column }
    END { printf "%g:%g", low / factor, high * factor }' "${@:3}"
}

# As decode_bench fits it: least squares of logarithms.
growth() {
  awk '$1 >= 32768 { n++; x = log($1); y = log($2); sx += x; sy += y; sxx += x * x; sxy += x * y }
    END { if (n >= 2) printf " (n^{%.2f}  from 32K on)", (n * sxy - sx * sy) / (n * sxx - sx * sx) }'
}

plot_error() {
  local json kind labelled style=1 tokens
  # Budgets stand beside the points of the kind with the greatest errors.
  for kind in sharp mid flat; do [[ ! -s $FOLDER/error_$kind.json ]] || labelled=$kind; done
  {
    cat <<'COMMANDS'
set logscale xy 10
set xlabel "bytes read, % of K and V"
set ylabel "relative error of outputs, mean, %"
set xtics (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
set ytics (0.2, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
set key top right
COMMANDS
    for kind in sharp mid flat; do
      json=$FOLDER/error_$kind.json
      [[ ! -s $json ]] || steps "$json" 'wave(/retrieval.*)?'
    done >"$WORK/all"
    echo "set xrange [$(range 3 1.3 "$WORK/all")]"
    echo "set yrange [$(range 4 1.4 "$WORK/all")]"
    printf 'plot \\\n'
    for kind in sharp mid flat; do
      json=$FOLDER/error_$kind.json
      style=$((style + 1))
      [[ -s $json ]] || continue
      steps "$json" 'wave(/retrieval.*)?' >"$WORK/$kind"
      [[ -s $WORK/$kind ]] || continue
      awk '$5 == "wave"' "$WORK/$kind" >"$WORK/$kind.default"
      echo "  \"$kind\" using 3:4 with linespoints linestyle $style title \"$kind heads\", \\"
      echo "  \"$kind.default\" using 3:4 with points linestyle $style pointtype 6 pointsize 1.6 notitle, \\"
      if [[ $kind == "$labelled" ]]; then
        # Retrieval and sketch in percent, beside the points.
        sed -E 's|wave/retrieval:([^/]*)/sketch:(.*)$|\1 \2|; s|wave$|default default|' "$WORK/$kind" |
          awk '{ print $3, $4, $5 == "default" ? "\"default\"" : sprintf("\"%g/%g\"", 100 * $5, 100 * $6) }' \
            >"$WORK/labels"
        echo '  "labels" using 1:2:3 with labels font ",11" textcolor "#444444" offset 0.6,0.8 left notitle,' "\\"
      fi
    done
    echo '  1/0 notitle'
  } >"$WORK/commands.gp"
  json=$FOLDER/error_$labelled.json
  tokens=$(steps "$json" 'wave.*' | awk 'NR == 1 { print $1 }')
  plot error.svg "Error against bytes read, context of $tokens tokens; beside points: retrieval/sketch in %\n$(
    describe "$json" | sed 's/ ([a-z, ]*)//')"
}

drawn=""
if [[ -s $FOLDER/decode.json ]]; then plot_time "$FOLDER/decode.json"; drawn=1; fi
if compgen -G "$FOLDER/error_*.json" >/dev/null; then plot_error; drawn=1; fi
[[ -n $drawn ]] || { echo "plot_report.sh: $FOLDER has neither decode.json nor error_KIND.json" >&2; exit 1; }
