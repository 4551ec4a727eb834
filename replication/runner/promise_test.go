package runner

import (
	"testing"
	"time"
)

const span = 500 * time.Millisecond

// TestPromise drives the four rules of promise, one step a line. Taking the line marked with a rule out of promise.go
// makes the cases of that rule fail (tried for each).
func TestPromise(t *testing.T) {
	start := time.Unix(1000, 0)
	type step struct {
		at   time.Duration // since start
		do   string        // success, grant, own, transfer-grant, transfer-own, timeoutnow
		term uint64
		want bool
	}
	cases := []struct {
		name  string
		steps []step
	}{
		{"a start counts as a promise", []step{
			{0, "grant", 2, false}, {499 * time.Millisecond, "own", 2, false}, {500 * time.Millisecond, "own", 2, true}}},
		{"a success binds votes for one heartbeat time-out", []step{
			{time.Second, "success", 3, true}, {1499 * time.Millisecond, "grant", 4, false},
			{1499 * time.Millisecond, "own", 4, false}, {1500 * time.Millisecond, "grant", 4, true}}},
		{"each success renews", []step{
			{time.Second, "success", 3, true}, {1400 * time.Millisecond, "success", 3, true},
			{1800 * time.Millisecond, "grant", 4, false}, {1900 * time.Millisecond, "grant", 4, true}}},
		{"after a vote no success of an older term leaves", []step{
			{time.Second, "grant", 5, true}, {time.Second, "success", 4, false}, {time.Second, "success", 5, true}}},
		{"after an own vote neither", []step{
			{time.Second, "own", 5, true}, {time.Second, "success", 4, false}, {time.Second, "success", 6, true}}},
		{"a refused vote binds nobody", []step{
			{time.Second, "success", 3, true}, {time.Second, "grant", 4, false}, {time.Second, "success", 3, true}}},
		{"a transfer's vote passes", []step{
			{time.Second, "success", 3, true}, {time.Second, "transfer-grant", 4, true}, {time.Second, "success", 3, false}}},
		{"an own transfer needs TimeoutNow of the term before", []step{
			{time.Second, "success", 3, true}, {time.Second, "transfer-own", 4, false}, {time.Second, "timeoutnow", 3, true},
			{time.Second, "transfer-own", 5, false}, {time.Second, "transfer-own", 4, true}}},
		{"a late TimeoutNow elects nobody", []step{
			{time.Second, "timeoutnow", 2, false}, {time.Second, "success", 3, true}, {time.Second, "transfer-own", 4, false}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newPromise(span, start)
			const ownTerm = 3
			for i, s := range c.steps {
				now := start.Add(s.at)
				var got bool
				switch s.do {
				case "success":
					got = p.success(s.term, now)
				case "grant":
					got = p.vote(s.term, false, false, now)
				case "own":
					got = p.vote(s.term, true, false, now)
				case "transfer-grant":
					got = p.vote(s.term, false, true, now)
				case "transfer-own":
					got = p.vote(s.term, true, true, now)
				case "timeoutnow":
					got = p.timeoutNow(s.term, ownTerm)
				}
				if got != s.want {
					t.Fatalf("step %d, %s of term %d at %v: got %v, want %v", i, s.do, s.term, s.at, got, s.want)
				}
			}
		})
	}
}
