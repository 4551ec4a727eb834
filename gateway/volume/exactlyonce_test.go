package volume_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
	"github.com/storaged/storaged/replication/op"
)

// recorder keeps what groups decided.
type recorder struct {
	mu  sync.Mutex
	all []volumetest.Applied
}

func record(c *volumetest.Cluster) *recorder {
	r := &recorder{}
	c.OnApply(func(a volumetest.Applied) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all = append(r.all, a)
	})
	return r
}

// count returns how many operations of a kind were applied (duplicates are not), refused, and met as duplicates.
func (r *recorder) count(kind op.Kind) (applied, refused, duplicates int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.all {
		switch {
		case a.Op.Kind != kind:
		case a.Result.Kind != storage.KindNone:
			refused++
		case a.Result.Duplicate:
			duplicates++
		default:
			applied++
		}
	}
	return applied, refused, duplicates
}

// gapless reports, for every session that was closed, a number that was handed out and not applied.
func (r *recorder) gapless(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	closed := 0
	for _, a := range r.all {
		if a.Op.Kind == op.CloseSession && a.Result.Window != nil {
			closed++
			if w := a.Result.Window; w.Count() != 0 {
				t.Errorf("group %d session %d: %d numbers applied above the low-water mark %d", a.Group, a.Op.Session, w.Count(), w.Low)
			}
		}
	}
	if closed == 0 {
		t.Error("no session was closed")
	}
}

// isWrite matches the Nth (from 1) Propose of a Write whose first byte of data the script cannot see: by extent.
func isWrite(c volumetest.Call) bool { return c.Method == volumetest.Propose && c.Op.Kind == op.Write }

// once returns f for the first call that match accepts and no fault for all others.
func once(match func(volumetest.Call) bool, f volumetest.Fault) func(volumetest.Call) volumetest.Fault {
	var mu sync.Mutex
	done := false
	return func(c volumetest.Call) volumetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if done || !match(c) {
			return volumetest.Fault{}
		}
		done = true
		return f
	}
}

// Guards I3: a retry carries the number of the attempt whose answer was lost, so it is applied once.
// Line: try (write.go) encodes f.seq for every attempt. Tried: taking a new number for each attempt fails it.
func TestLostAnswerIsAppliedOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		r := record(c)
		v := open(t, start(t, c, nil), "data")
		c.SetFault(once(isWrite, volumetest.Fault{LoseAnswer: true}))
		mustWrite(t, v, pattern(block, 1), 0)
		if applied, _, duplicates := r.count(op.Write); applied != 1 || duplicates != 1 {
			t.Errorf("%d applied, %d duplicates", applied, duplicates)
		}
	})
}

// Guards I3: the first copy of a write, held on its way while a second copy was applied, does not undo a later write.
// Line: as above. Tried: taking a new number for each attempt brings the old bytes back.
func TestLateCopyIsNotAppliedAfterLaterWrite(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		r := record(c)
		v := open(t, start(t, c, nil), "data")
		hold := make(chan struct{})
		c.SetFault(once(isWrite, volumetest.Fault{Hold: hold}))
		mustWrite(t, v, pattern(block, 1), 0)
		mustWrite(t, v, pattern(block, 2), 0)
		close(hold)
		synctest.Wait()
		if _, _, duplicates := r.count(op.Write); duplicates != 1 {
			t.Fatalf("%d duplicates: the held copy was not delivered", duplicates)
		}
		wantBytes(t, v, pattern(block, 2), 0)
	})
}

// Guards I3 and I9: number s is not sent before s-1,024 was answered.
// Line: takeLocked (lane.go) asks InWindow(next). Tried: without it, 3,000 numbers are sent.
func TestWindowIsNeverExceeded(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, func(config *volume.Config) { config.AttemptTimeout = time.Hour }), "data")
		mustWrite(t, v, pattern(block, 0), 3*extent) // opens the session; in group 3
		hold := make(chan struct{})
		var mu sync.Mutex
		var highest uint64
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if !isWrite(call) {
				return volumetest.Fault{}
			}
			mu.Lock()
			defer mu.Unlock()
			highest = max(highest, call.Op.Seq)
			if call.Op.Seq == 1 {
				return volumetest.Fault{Hold: hold}
			}
			return volumetest.Fault{}
		})
		var wg sync.WaitGroup
		for i := range 3000 {
			wg.Go(func() {
				if err := v.WriteAt(t.Context(), pattern(block, byte(i)), int64(i%1024)*block); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		mu.Lock()
		if highest != storage.SessionWindow {
			t.Errorf("number %d was sent while 1 was not answered, want %d", highest, storage.SessionWindow)
		}
		mu.Unlock()
		close(hold)
		wg.Wait()
		if highest != 3000 {
			t.Errorf("the last number is %d", highest)
		}
	})
}

// Guards I3: a caller that leaves does not make its number be forgotten. Numbers stay dense, so the window goes on.
// Line: detach in send (write.go) goes on in the background. Tried: finishing the request instead, without the
// flight going on, leaves gaps, and the writes after them hang.
func TestCanceledRequestsLeaveNoGaps(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		r := record(c)
		g := start(t, c, nil)
		v := open(t, g, "data")
		n := 0
		var mu sync.Mutex
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if !isWrite(call) {
				return volumetest.Fault{}
			}
			if n++; n%3 == 0 {
				return volumetest.Fault{Err: volumetest.Unavailable("scripted")}
			}
			return volumetest.Fault{Delay: time.Duration(n%7) * time.Millisecond}
		})
		canceled := 0
		for i := range 1500 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%9)*time.Millisecond)
			err := v.WriteAt(ctx, pattern(block, byte(i)), int64(i%5)*block)
			cancel()
			if errors.Is(err, storage.ErrCanceled) {
				canceled++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if canceled < 100 {
			t.Errorf("only %d requests were canceled", canceled)
		}
		c.SetFault(nil)
		mustWrite(t, v, pattern(block, 1), 0)
		if err := v.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.gapless(t)
	})
}

// A refused request gives its number back, and the next one uses it.
func TestRefusedNumberIsUsedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		r := record(c)
		v := open(t, start(t, c, nil), "data")
		c.SetFault(once(isWrite, volumetest.Fault{Refuse: storage.KindNoSpace}))
		if err := v.WriteAt(t.Context(), pattern(block, 1), 0); !errors.Is(err, storage.ErrNoSpace) {
			t.Fatalf("full: %v", err)
		}
		for i := range 1100 {
			mustWrite(t, v, pattern(block, byte(i)), 0)
		}
		if err := v.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.gapless(t)
	})
}

// Guards I3: a number whose first copy may still be on its way is not used for anything else, although the second copy
// was refused: the session is closed instead, and its window decides.
// Line: try (write.go) gives a number back only when f.attempts == 1. Tried: giving it back always acknowledges the
// next write as a duplicate of the held one, and loses it.
func TestRefusedAfterRetryIsDecidedByWindow(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		hold := make(chan struct{})
		n := 0
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if !isWrite(call) {
				return volumetest.Fault{}
			}
			switch n++; n {
			case 1:
				return volumetest.Fault{Hold: hold}
			case 2:
				return volumetest.Fault{Refuse: storage.KindNoSpace}
			case 3:
				close(hold) // the first copy arrives before the request after it
				return volumetest.Fault{Delay: time.Millisecond}
			}
			return volumetest.Fault{}
		})
		if err := v.WriteAt(t.Context(), pattern(block, 1), 0); !errors.Is(err, storage.ErrNoSpace) {
			t.Fatalf("full: %v", err)
		}
		mustWrite(t, v, pattern(block, 2), 0)
		wantBytes(t, v, pattern(block, 2), 0)
	})
}

// The pauses between attempts double up to their cap, and no attempt is made while one is out.
func TestRetriesBackOff(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, func(config *volume.Config) {
			config.RetryMin, config.RetryMax = 10*time.Millisecond, 80*time.Millisecond
			config.Jitter = func() float64 { return 0 }
		}), "data")
		var at []time.Duration
		begin := time.Now()
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if isWrite(call) {
				if at = append(at, time.Since(begin)); len(at) < 8 {
					return volumetest.Fault{Err: volumetest.Unavailable("scripted")}
				}
			}
			return volumetest.Fault{}
		})
		mustWrite(t, v, pattern(block, 1), 0)
		ms := time.Millisecond
		want := []time.Duration{0, 10 * ms, 30 * ms, 70 * ms, 150 * ms, 230 * ms, 310 * ms, 390 * ms}
		for i := range want {
			if at[i] != want[i] {
				t.Fatalf("attempts at %v, want %v", at, want)
			}
		}
	})
}

// A hint about the leader is followed at once.
func TestNotLeaderIsFollowedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		mustWrite(t, v, pattern(block, 1), 0)
		begin := time.Now()
		c.SetFault(once(isWrite, volumetest.Fault{Err: volumetest.NotLeader()}))
		mustWrite(t, v, pattern(block, 1), 0)
		c.SetFault(once(func(call volumetest.Call) bool { return call.Method == volumetest.Read }, volumetest.Fault{Err: volumetest.NotLeader()}))
		wantBytes(t, v, pattern(block, 1), 0)
		if d := time.Since(begin); d != 0 {
			t.Errorf("it took %v", d)
		}
	})
}

// An attempt that gets no answer is repeated after AttemptTimeout.
func TestSilentAttemptIsRepeated(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		mustWrite(t, v, pattern(block, 1), 0)
		begin := time.Now()
		c.SetFault(once(isWrite, volumetest.Fault{Hold: make(chan struct{})}))
		mustWrite(t, v, pattern(block, 2), 0)
		if d := time.Since(begin); d < 1500*time.Millisecond || d > 1800*time.Millisecond {
			t.Errorf("it took %v", d)
		}
	})
}

// unreadable is a cluster whose first answer to a write cannot be read, as that of a node of a later version.
type unreadable struct {
	volume.Cluster
	done bool
}

func (u *unreadable) Propose(ctx context.Context, g storage.GroupID, data [][]byte) (op.Result, error) {
	res, err := u.Cluster.Propose(ctx, g, data)
	if o, _, decodeErr := op.DecodeHeader(data[0]); decodeErr == nil && o.Kind == op.Write && !u.done {
		u.done = true
		return op.Result{}, storage.E("decode result", storage.KindUnsupported, "version 2", nil)
	}
	return res, err
}

// Guards I1: the number of a write that was applied, but whose answer could not be read, is not used again: the next
// write under it would be acknowledged as a duplicate and never applied.
// Line: free in try (write.go). Tried: giving the number back for every error that came first loses the second write.
func TestUnreadableAnswerKeepsTheNumber(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, func(config *volume.Config) { config.Cluster = &unreadable{Cluster: config.Cluster} }), "data")
		mustWrite(t, v, pattern(block, 1), 0) // its window says that it was applied
		mustWrite(t, v, pattern(block, 2), block)
		ctx, cancel := within(t)
		defer cancel()
		for i := range int64(2) {
			got := make([]byte, block)
			if err := v.ReadAt(ctx, got, i*block); err != nil || !bytes.Equal(got, pattern(block, byte(i+1))) {
				t.Errorf("block %d is not what was acknowledged: %v", i, err)
			}
		}
	})
}

// damagedWrites answers the n-th write attempts of the numbers given as a leader does that finds a request damaged.
func damagedWrites(numbers ...int) func(volumetest.Call) volumetest.Fault {
	n := 0
	return func(call volumetest.Call) volumetest.Fault {
		if !isWrite(call) {
			return volumetest.Fault{}
		}
		n++
		if slices.Contains(numbers, n) {
			return volumetest.Fault{Err: storage.E("propose", storage.KindCorrupt, "request", errors.New("damaged on its way"))}
		}
		return volumetest.Fault{}
	}
}

// TestDamagedRequestIsSentAgain: one bit that flips on the way to the leader is a retry, and neither an error of the device
// nor the end of the session. A request that stays damaged fails alone, and gives its number back.
func TestDamagedRequestIsSentAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		r := record(c)
		v := open(t, start(t, c, nil), "data")
		mustWrite(t, v, pattern(block, 1), 0)
		session := c.Sessions()
		c.SetFault(damagedWrites(1, 3))
		mustWrite(t, v, pattern(block, 2), 0)
		mustWrite(t, v, pattern(block, 3), 0)
		wantBytes(t, v, pattern(block, 3), 0)
		c.SetFault(damagedWrites(1, 2))
		if err := v.WriteAt(t.Context(), pattern(block, 4), 0); !errors.Is(err, storage.ErrCorrupt) {
			t.Fatalf("a request that is damaged twice: %v", err)
		}
		for i := range 1100 { // or the window would be full
			mustWrite(t, v, pattern(block, byte(i)), 0)
		}
		if now := c.Sessions(); !slices.Equal(session, now) {
			t.Errorf("sessions %v, then %v: a damaged request has ended one", session, now)
		}
		if err := v.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.gapless(t)
	})
}

// TestDamagedAfterALostAnswer guards I3: when an attempt of unknown outcome came before, the number is not free, and the
// window decides (tried: giving it back acknowledges the next write as a duplicate of this one, and loses it).
func TestDamagedAfterALostAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		v := open(t, start(t, c, nil), "data")
		corrupt := damagedWrites(2, 3)
		n := 0
		c.SetFault(func(call volumetest.Call) volumetest.Fault {
			if f := corrupt(call); f.Err != nil || !isWrite(call) {
				return f
			}
			if n++; n == 1 {
				return volumetest.Fault{LoseAnswer: true}
			}
			return volumetest.Fault{}
		})
		if err := v.WriteAt(t.Context(), pattern(block, 1), 0); err != nil {
			t.Fatalf("it was applied, and the window says so: %v", err)
		}
		mustWrite(t, v, pattern(block, 2), 0)
		wantBytes(t, v, pattern(block, 2), 0)
	})
}
