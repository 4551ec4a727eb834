package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/version"
)

// failing is a standard output that takes nothing.
type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestOutputThatIsLost: whoever reads the exit code learns that the output was not written, in each form.
func TestOutputThatIsLost(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind storage.Kind
	}{{syscall.ENOSPC, storage.KindNoSpace}, {errors.New("gone"), storage.KindIO}} {
		for _, args := range [][]string{{"status"}, {"status", "--check"}, {"volume", "list"}, {"node", "list", "-o", "json"}, {"group", "list", "-o", "yaml"},
			{"volume", "create", "web", "--size", "1M"}, {"volume", "delete", "old", "--yes"}, {"version"}, {"help"}, {"completion", "bash"}} {
			r := newRig(t)
			r.create("old", 1<<20)
			var errs bytes.Buffer
			code := r.app(failing{c.err}, &errs).run(context.Background(), args)
			if want := exitCode(storage.E("", c.kind, "", nil)); code != want {
				t.Errorf("%q, %v: exit code %d, want %d: %s", args, c.err, code, want, errs.String())
			}
			if !strings.Contains(errs.String(), c.err.Error()) {
				t.Errorf("%q: said %q, want %q", args, errs.String(), c.err)
			}
		}
	}
}

// TestOneVersion: both programs are told their version by the linker in the same place.
func TestOneVersion(t *testing.T) {
	was := version.Version
	version.Version = "v7.7.7"
	defer func() { version.Version = was }()
	if out := newRig(t).must("version", "--client"); !strings.Contains(out, "storagectl v7.7.7") {
		t.Errorf("%q", out)
	}
}

// TestWordsThatAreNoCommand: what is not known is refused, below help and completion as well.
func TestWordsThatAreNoCommand(t *testing.T) {
	r := newRig(t)
	for _, args := range [][]string{{"nosuch"}, {"volume", "nosuch"}, {"help", "nosuch"}, {"help", "volume", "nosuch"}, {"completion", "nosuch"}} {
		got := r.run(args...)
		wantCode(t, got, storage.KindInvalid)
		if got.out != "" || !strings.Contains(got.err, `there is no command "nosuch"`) {
			t.Errorf("%q: %q, %q", args, got.out, got.err)
		}
	}
	for _, args := range [][]string{{"help"}, {"help", "volume"}, {"help", "volume", "create"}, {"help", "sizes"}, {"completion"}, {"volume"}} {
		if got := r.run(args...); got.code != 0 || got.out == "" {
			t.Errorf("%q: %+v", args, got)
		}
	}
}
