package main

import (
	"context"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
)

// TestEventsFollow: events that come while a person looks are shown once each, until the person has seen enough, also when the cluster does
// not answer for a while. The line is the one that sets f.After.
func TestEventsFollow(t *testing.T) {
	r := newRig(t)
	happen := func(k storage.EventKind) {
		r.cluster.AddEvents(storage.Event{Kind: k, Node: 1, NodeName: "a", At: r.now()})
	}
	happen(storage.EventNodeJoined)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := 0
	got := r.runWith(func(a *app) {
		a.sleep = func(context.Context, time.Duration) error {
			switch asked++; asked {
			case 1:
				happen(storage.EventNodeDown)
			case 2:
				r.cluster.Fail(func(int) error { return storage.E("ask", storage.KindInternal, "catalog", nil) })
			case 3:
				r.cluster.Fail(nil)
				happen(storage.EventNodeBack)
			case 5:
				cancel()
			}
			return ctx.Err()
		}
	}, "events", "--follow")
	if got.code != 0 || strings.Count(got.out, "\n") != 3 || !strings.HasSuffix(got.out, "node a is back\n") || !strings.Contains(got.err, "ask") {
		t.Errorf("exit %d, printed\n%s%s", got.code, got.out, got.err)
	}
}
