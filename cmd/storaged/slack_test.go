package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const slackChild = "STORAGED_TEST_SLACK_CHILD"

// TestRelaxTimers runs this test again in a process of its own, which begins anew once, with the slack, and only once.
func TestRelaxTimers(t *testing.T) {
	if os.Getenv(slackChild) != "" {
		relaxTimers()
		slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		if err != nil || slack != timerSlackNS {
			t.Fatalf("the slack is %d ns (%v), want %d", slack, err, timerSlackNS)
		}
		if os.Getenv(slackSet) != "" {
			t.Fatal("the mark would be handed on to programs that this one starts")
		}
		relaxTimers() // the slack is there: nothing is done
		t.Log("relaxed")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestRelaxTimers$", "-test.v")
	cmd.Env = append(os.Environ(), slackChild+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "relaxed") {
		t.Fatalf("%v\n%s", err, out)
	}
}
