package main

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const crashChild = "STORAGED_TEST_CRASH"

// TestCrashBySignal: a crash is not taken for what the operator has to change, after which units do not start a program again. The
// line is main's that calls crashBySignal.
func TestCrashBySignal(t *testing.T) {
	switch os.Getenv(crashChild) {
	case "panic":
		crashBySignal()
		panic("an invariant is broken")
	case "watchdog":
		crashBySignal()
		_ = syscall.Kill(os.Getpid(), syscall.SIGABRT)
		select {}
	case "core":
		crashBySignal()
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit.Cur != 0 {
			t.Fatalf("a crash may leave %d bytes of core (%v)", limit.Cur, err)
		}
		return
	}
	for _, how := range []string{"panic", "watchdog", "core"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrashBySignal$")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, tracebackVariable+"=") }), crashChild+"="+how)
		out, err := cmd.CombinedOutput()
		if how == "core" {
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			continue
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatalf("%s: %v", how, err)
		}
		if status := exit.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGABRT || status.CoreDump() {
			t.Errorf("%s: it ended with %v", how, exit)
		}
		if !strings.Contains(string(out), "goroutine ") {
			t.Errorf("%s: no stacks:\n%s", how, out)
		}
	}
}

// TestUnitsStartAnew: a unit is not started again after the exit codes of what the operator has to change and of a damaged store, and after no
// other. Neither is how a crash ends (TestCrashBySignal).
func TestUnitsStartAnew(t *testing.T) {
	for unit, codes := range map[string]string{"storaged": "2 3", "storaged-gateway": "2", "storaged-docker": "2"} {
		text, err := os.ReadFile("../../deploy/systemd/" + unit + ".service")
		if err != nil {
			t.Fatal(err)
		}
		if said := regexp.MustCompile(`(?m)^RestartPreventExitStatus=(.*)$`).FindStringSubmatch(string(text)); len(said) != 2 || said[1] != codes {
			t.Errorf("%s is not started again after %q, want %q", unit, said, codes)
		}
		if !regexp.MustCompile(`(?m)^Restart=(always|on-failure)$`).Match(text) {
			t.Errorf("%s is not started again", unit)
		}
		if !regexp.MustCompile(`(?m)^StartLimitIntervalSec=0$`).Match(text) {
			t.Errorf("%s is given up after five starts in ten seconds", unit)
		}
	}
}
