package runner

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestTraceBooks: the time between two stations counts in the stage that ends at the second, whatever was not passed takes no time,
// and an entry that was overtaken, or whose trace was not begun, is not booked.
func TestTraceBooks(t *testing.T) {
	const ms = time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		s, err := NewStages(nil)
		if err != nil {
			t.Fatal(err)
		}
		tr := s.Trace()
		proposed := time.Now()
		<-time.After(ms)
		handed := time.Now()
		for i := atStoring; i < stations; i++ {
			<-time.After(time.Duration(i+2) * ms)
			tr.pass(i, 5, 6)
			<-time.After(ms)
			if i == atSent || i == atAnswered {
				tr.pass(i, 5, 6) // the second follower
			}
		}
		tr.Answered(5, proposed, handed)
		want := [len(writeStages)]time.Duration{ms, 2 * ms, 4 * ms, 5 * ms, 6 * ms, 7 * ms, 8 * ms, 9 * ms, ms}
		if s.writes != 1 || s.write != want {
			t.Errorf("%d writes: %v, want %v", s.writes, s.write, want)
		}
		tr.Answered(7, proposed, handed)
		tr.Storing(6+tracedEntries, 6+tracedEntries)
		tr.Answered(6, proposed, handed)
		tr.Answered(6+tracedEntries, proposed, handed)
		if s.writes != 1 {
			t.Errorf("%d writes: one that was not begun, overtaken or did not pass was booked", s.writes)
		}
		handed = time.Now()
		for _, pass := range []func(first, last uint64){tr.Storing, tr.Stored, tr.Committed, tr.Applied} {
			<-time.After(ms)
			pass(9, 9)
		}
		tr.Answered(9, handed, handed) // of a lone voter
		for i, more := range [...]time.Duration{0, ms, ms, 0, 0, 0, ms, ms, 0} {
			if got := s.write[i] - want[i]; got != more {
				t.Errorf("a lone voter's %s took %v, want %v", writeStages[i], got, more)
			}
		}
		var none *Trace
		none.Storing(1, 1)
		none.Answered(1, proposed, handed)
	})
}

// TestTraceOfSending: an entry is on its way when its request goes to the connection, before anybody has received it.
func TestTraceOfSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, stop := twoTransports(t)
		defer stop()
		s, err := NewStages(nil)
		if err != nil {
			t.Fatal(err)
		}
		a.cfg.Trace = s.Trace()
		<-time.After(time.Millisecond)
		a.cfg.Trace.Storing(5, 5)
		<-time.After(time.Millisecond)
		sent := make(chan error, 1)
		go func() {
			req := &raft.AppendEntriesRequest{RPCHeader: headerOf(1), Term: 1, PrevLogEntry: 4, PrevLogTerm: 1, Entries: []*raft.Log{{Index: 5, Term: 1, Data: []byte("x")}}}
			var err error
			for range 3 { // the first finds no connection
				if err = a.AppendEntries("2", NodeAddress(2), req, &raft.AppendEntriesResponse{}); err == nil {
					break
				}
				<-time.After(time.Second)
			}
			sent <- err
		}()
		var rpc raft.RPC
		select {
		case rpc = <-b.Consumer():
		case err := <-sent:
			t.Fatalf("not delivered: %v", err)
		}
		if at := a.cfg.Trace.entries[5].at; at[atSent] != 2*time.Millisecond+1 || at[atAnswered] != 0 {
			t.Errorf("sent and answered at %v and %v", at[atSent], at[atAnswered])
		}
		rpc.Respond(&raft.AppendEntriesResponse{Term: 1, LastLog: 5, Success: true}, nil)
		if err := <-sent; err != nil || a.cfg.Trace.entries[5].at[atAnswered] == 0 {
			t.Errorf("%v, answered at %v", err, a.cfg.Trace.entries[5].at[atAnswered])
		}
	})
}

// BenchmarkTrace is what one write at depth 1 adds at its leader: it has two followers, and a batch of its own.
func BenchmarkTrace(b *testing.B) {
	s, err := NewStages(nil)
	if err != nil {
		b.Fatal(err)
	}
	tr := s.Trace()
	for i := uint64(1); b.Loop(); i++ {
		proposed := time.Now()
		handed := time.Now()
		tr.Storing(i, i)
		tr.Stored(i, i)
		for range 2 {
			tr.pass(atSent, i, i)
			tr.tripped(2, time.Since(handed))
			tr.pass(atAnswered, i, i)
			tr.pass(atCounted, i, i)
		}
		tr.Committed(i, i)
		tr.Applied(i, i)
		tr.Answered(i, proposed, handed)
	}
}
