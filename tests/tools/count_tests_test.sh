#!/usr/bin/env bash
# The counter behind `./wave test` must not lose a failure, however a test ends.
set -euo pipefail

counter=$PWD/tools/count_tests.awk
cd "$TEST_TMPDIR"
failed=0

# result LABEL STATUS [ATTEMPT]: the event of one test run whose report and log are in the folder LABEL.
result() {
  printf '{"id":{"testResult":{"label":"//t:%s","run":1,"shard":1,"attempt":%s,"configuration":{"id":"c"}}},' \
    "$1" "${3:-1}"
  printf '"testResult":{"testActionOutput":[{"name":"test.log","uri":"file://%s"},' "$PWD/$1/test.log"
  printf '{"name":"test.xml","uri":"file://%s"}],"status":"%s"}}\n' "$PWD/$1/test.xml" "$2"
}

# expect CLAIM EVENTS LINE...: the counter turns EVENTS into exactly these lines.
expect() {
  local claim=$1 events=$2 got want
  shift 2
  got=$(awk -f "$counter" <<<"$events")
  want=$(printf '%s\n' "$@")
  if [[ $got != "$want" ]]; then
    printf 'FAILED: %s\n--- expected\n%s\n--- got\n%s\n' "$claim" "$want" "$got"
    failed=1
  fi
}

mkdir gtest good shell crash leak missing

cat >gtest/test.xml <<'XML'
<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="5" failures="1" disabled="1" errors="0" time="0" name="AllTests">
  <testsuite name="Suite" tests="5" failures="1" disabled="1" skipped="1" errors="0" time="0">
    <testcase name="Passes" status="run" result="completed" time="0" classname="Suite" />
    <testcase name="IsSkipped" status="run" result="skipped" time="0" classname="Suite">
      <skipped message="no &lt;GPU&gt;"><![CDATA[no <GPU>]]></skipped>
    </testcase>
    <testcase name="DISABLED_IsOff" status="notrun" result="suppressed" time="0" classname="Suite" />
    <testcase name="Fails" status="run" result="completed" time="0" classname="Suite">
      <failure message="one" type=""><![CDATA[
    <testcase name="Fake" status="run" classname="Suite" />
  <failure message="fake">]]></failure>
      <failure message="two" type=""><![CDATA[two]]></failure>
    </testcase>
    <testcase name="PassesAsWell/0" value_param="0" status="run" result="completed" classname="All/Suite" />
  </testsuite>
</testsuites>
XML
touch gtest/test.log
expect "a failing case counts once, skipped and disabled cases are skipped" "$(result gtest FAILED)" \
  $'case\t//t:gtest\tSuite.Fails' $'log\t'"$PWD/gtest/test.log" $'total\t2\t1\t2'

cat >good/test.xml <<'XML'
<testsuites><testsuite name="Suite">
    <testcase name="Passes" status="run" result="completed" classname="Suite" />
</testsuite></testsuites>
XML
cp good/test.xml leak/test.xml
touch good/test.log leak/test.log
expect "a binary that fails after its cases passed is a failure" "$(result leak FAILED)" \
  $'case\t//t:leak\t(FAILED although no case failed)' $'log\t'"$PWD/leak/test.log" $'total\t1\t1\t0'
expect "the last attempt counts" "$(result good FAILED 1; result good PASSED 2)" $'total\t1\t0\t0'

cat >shell/test.xml <<'XML'
<testsuites>
  <testsuite name="t/shell" tests="1" failures="0" errors="0">
    <testcase name="t/shell" status="run" duration="0" time="0"></testcase>
      <system-out>
<![CDATA[some <testcase name="x"> output]]>
      </system-out>
    </testsuite>
</testsuites>
XML
touch shell/test.log
expect "a test without cases counts as one" "$(result shell PASSED)" $'total\t1\t0\t0'

cat >crash/test.xml <<'XML'
<testsuites>
  <testsuite name="t/crash" tests="1" failures="0" errors="1">
    <testcase name="t/crash" status="run" duration="0" time="0"><error message="exited with error code 134"></error></testcase>
    </testsuite>
</testsuites>
XML
printf '[ RUN      ] Suite.Passes\n[       OK ] Suite.Passes (0 ms)\n[ RUN      ] Suite.Crashes\n' >crash/test.log
expect "a crash is one failure and names the running case" "$(result crash FAILED)" \
  $'case\t//t:crash\t(died in Suite.Crashes)' $'log\t'"$PWD/crash/test.log" $'total\t0\t1\t0'

expect "a missing report is a failure" "$(result missing TIMEOUT)" \
  $'case\t//t:missing\t(TIMEOUT although no case failed)' $'log\t'"$PWD/missing/test.log" $'total\t0\t1\t0'

built='{"id":{"targetCompleted":{"label":"//t:ok","configuration":{}}},"completed":{"success":true}}'
broken='{"id":{"targetCompleted":{"label":"//t:bad","configuration":{}}},"completed":{"failureDetail":{}}}'
left_out='{"id":{"targetCompleted":{"label":"//t:no","configuration":{}}},"aborted":{"reason":"SKIPPED"}}'
expect "a target that does not build is a failure" "$built"$'\n'"$broken"$'\n'"$left_out" \
  $'case\t//t:bad\t(does not build)' $'total\t0\t1\t0'

expect "no event, no test" "" $'total\t0\t0\t0'
exit $failed
