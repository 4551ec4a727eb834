package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

// Scripts depend on the codes: this table is a copy on purpose.
func TestExitCodes(t *testing.T) {
	want := map[storage.Kind]int{
		storage.KindNone: 0, storage.KindInternal: 1, storage.KindInvalid: 2, storage.KindNotFound: 3, storage.KindExists: 4,
		storage.KindConflict: 5, storage.KindFenced: 6, storage.KindNotLeader: 7, storage.KindUnavailable: 8,
		storage.KindNoSpace: 9, storage.KindCorrupt: 10, storage.KindIO: 11, storage.KindPermission: 12,
		storage.KindUnsupported: 13, storage.KindCanceled: 130,
	}
	help, seen := exitHelp(), map[int]bool{exitDegraded: true, exitCritical: true, exitStarting: true}
	for _, kind := range append(storage.Kinds(), storage.KindNone) {
		var err error
		if kind != storage.KindNone {
			err = fmt.Errorf("outer: %w", storage.E("op", kind, "subject", nil))
		}
		code, ok := want[kind]
		if got := exitCode(err); !ok || got != code {
			t.Errorf("%v ends with %d, want %d", kind, got, code)
		}
		if seen[code] {
			t.Errorf("code %d has two meanings", code)
		}
		seen[code] = true
		if !strings.Contains(help, fmt.Sprintf("  %3d  %s", code, kind)) {
			t.Errorf("the help does not name %d for %v", code, kind)
		}
	}
	if exitCode(errors.New("no kind")) != 1 || exitCode(context.Canceled) != 130 || exitCode(exitStatus(21)) != 21 {
		t.Error("errors without a kind end with other codes")
	}
}

// What the cluster refuses with a kind, a command ends with as the code of that kind.
func TestKindsReachTheExitCode(t *testing.T) {
	for _, kind := range storage.Kinds() {
		t.Run(kind.String(), func(t *testing.T) {
			r := newRig(t)
			r.cluster.Fail(func(int) error { return storage.E("list", kind, "volumes", nil) })
			want := kind
			switch kind {
			case storage.KindUnavailable, storage.KindNotLeader, storage.KindCanceled: // asked again for as long as the patience lasts
				want = storage.KindUnavailable
				r.env["STORAGECTL_TIMEOUT"] = "200ms" // however slow this machine is: what ends it has the same code
			default: // the first answer is the last
				r.env["STORAGECTL_TIMEOUT"] = "1m"
			}
			got := r.run("volume", "list")
			wantCode(t, got, want)
			if !strings.HasPrefix(got.err, "storagectl: ") || got.out != "" {
				t.Errorf("said %q and %q", got.out, got.err)
			}
		})
	}
}

// TestConflictsHaveTheirOwnNextStep: who has a volume is in the way of its deletion, and of nothing else that is refused.
func TestConflictsHaveTheirOwnNextStep(t *testing.T) {
	for op, hinted := range map[string]bool{"delete": true, "resize": false, "attach": false, "create": false, "modify": false} {
		r := newRig(t)
		r.cluster.Fail(func(int) error {
			return storage.E(op, storage.KindConflict, "volume db", errors.New("it is being deleted"))
		})
		got := r.run("volume", "list")
		if strings.Contains(got.err, "volume show db") != hinted || strings.Contains(got.err, "disconnect") || !strings.Contains(got.err, "being deleted") {
			t.Errorf("%s: %q", op, got.err)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"web-data", "web-logs", "db", "backup-2024"}
	for name, want := range map[string]string{
		"web-dat": "web-data", "wbe-data": "web-data", "web_logs": "web-logs", "bd": "db", "backup": "backup-2024",
		"backup-2025": "backup-2024", "xyz": "", "d": "db", "completely-different": "", "": "",
	} {
		if got := nearest(name, names); got != want {
			t.Errorf("%q is nearest to %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"abc", "acb", 1}, {"kitten", "sitting", 3}, {"abcd", "abcd", 0}} {
		if got := distance(c.a, c.b); got != c.want || distance(c.b, c.a) != c.want {
			t.Errorf("from %q to %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
