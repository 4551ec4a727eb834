package logging

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

func newLogger(level slog.Level) (hclog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return HC(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))), &b
}

func TestLevelsAndFields(t *testing.T) {
	l, b := newLogger(slog.LevelDebug)
	l = l.Named("raft").With("group", 3)
	l.Trace("never")
	l.Info("entering follower state", "leader", hclog.Fmt("%d-%d", 1, 2))
	l.Error("no contact", "peer", "n2")
	l.StandardLogger(nil).Print("line")
	want := `level=DEBUG msg="raft: entering follower state" group=3 leader=1-2
level=WARN msg="raft: no contact" group=3 peer=n2
level=DEBUG msg="raft: line" group=3
`
	if b.String() != want {
		t.Fatalf("got\n%swant\n%s", b, want)
	}
	if l.IsTrace() || !l.IsInfo() || l.GetLevel() != hclog.Info || l.Name() != "raft" || len(l.ImpliedArgs()) != 2 {
		t.Errorf("level %v, name %q, implied %v", l.GetLevel(), l.Name(), l.ImpliedArgs())
	}
}

func TestRepeatsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, b := newLogger(slog.LevelInfo)
		for range 5 {
			l.Error("no contact")
		}
		l.Named("other").Error("no contact")
		<-time.After(repeatInterval)
		l.Error("no contact")
		want := "level=WARN msg=\"no contact\"\nlevel=WARN msg=\"other: no contact\"\nlevel=WARN msg=\"no contact\" left_out=4\n"
		if b.String() != want {
			t.Fatalf("got\n%swant\n%s", b, want)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	l, b := newLogger(slog.LevelInfo)
	for i := range maxMessages + 100 {
		l.Warn(fmt.Sprint("message ", i))
	}
	if n := len(l.(*hcLogger).repeats.seen); n > maxMessages {
		t.Errorf("%d messages are remembered, at most %d should", n, maxMessages)
	}
	if n := strings.Count(b.String(), "\n"); n != maxMessages+100 {
		t.Errorf("%d lines, want every message once", n)
	}
}

func TestNilDiscards(t *testing.T) {
	l := HC(nil)
	l.Error("nothing")
	if l.IsError() || l.GetLevel() != hclog.Off {
		t.Error("a nil logger is enabled")
	}
}
