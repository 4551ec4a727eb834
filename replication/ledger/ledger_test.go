package ledger

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	storage "github.com/storaged/storaged"
)

func store(n byte) storage.StoreID { return storage.StoreID{0xaa, 15: n} }

func server(n byte) string { return fmt.Sprintf("%s/%d", store(n), n) }

func servers(voters ...byte) (out []Server) {
	for _, n := range voters {
		out = append(out, Server{ID: server(n), Voter: true})
	}
	return out
}

// empty is a log that begins with the term.
func empty(s []Server) func() Opening { return func() Opening { return Opening{Servers: s, First: 1} } }

const plenty = math.MaxInt64 / 2

// TestOutstanding follows what is on its way through a term: admitted, appended, acknowledged by one and not by the other, and what
// the log no longer holds for it.
//
// Guards, in settleLocked: what is reserved, and what is appended; in Acked: that it never goes back; in Dropped: base. Each was taken out
// once, and this failed.
func TestOutstanding(t *testing.T) {
	l := New(time.Minute)
	b := l.Book(server(1))
	b.Begin(3, func() Opening { return Opening{servers(1, 2, 3), 10, []int64{100, 200}} })
	want := func(when string, own, two, three int64) {
		t.Helper()
		for n, w := range map[byte]int64{1: own, 2: two, 3: three} {
			if got := l.Outstanding(store(n)); got != w {
				t.Errorf("%s: %d bytes are on their way to store %d, want %d", when, got, n, w)
			}
		}
	}
	want("nothing is acknowledged of what the log holds", 0, 300, 300)
	b.Acked(server(2), 3, 11)
	b.Acked(server(3), 3, 10)
	want("acknowledged", 0, 0, 200)
	res, _, ok := b.Reserve(50, 0, plenty, true)
	if !ok {
		t.Fatal("nobody has said that there is no room")
	}
	want("admitted", 50, 50, 250)
	b.Appended(3, 12, 60, 50)
	want("in the log", 0, 60, 260)
	b.Acked(server(2), 2, 12)
	b.Acked(server(2), 3, 13)
	want("an answer of another term, and of what is not there", 0, 60, 260)
	b.Acked(server(2), 3, 12)
	b.Acked(server(2), 3, 10)
	want("acknowledged by one, and an older answer", 0, 0, 260)
	b.Dropped(12)
	want("the log begins later: the other gets a manifest", 0, 0, 60)
	b.Appended(3, 13, 5, 0)
	b.Acked(server(3), 3, 12)
	want("it goes on behind that", 0, 5, 5)
	b.Release(res)
	if res, _, _ = b.Reserve(7, 0, plenty, false); res.bytes != 7 {
		t.Errorf("%+v is reserved", res)
	}
	b.SetServers(append(servers(1, 2), Server{ID: server(4)}))
	want("one is gone, and another learns", 7, 12, 0)
	if got := l.Outstanding(store(4)); got != 72 { // all that the log holds
		t.Errorf("%d bytes are on their way to one that learns", got)
	}
	b.Release(res)
	want("nothing came of it", 0, 5, 0)
	other := l.Book(server(1))
	other.Begin(9, empty(servers(1, 2)))
	other.Appended(9, 1, 1000, 0)
	want("another group", 0, 1005, 0)
	b.End()
	want("it leads no longer", 0, 1000, 0)
	b.Release(res)
	b.Appended(3, 14, 1, 0)
	b.Acked(server(2), 3, 13)
	b.SetServers(servers(1, 2, 3))
	want("what comes too late", 0, 1000, 0)
	b.Begin(5, empty(servers(1, 2)))
	b.Begin(5, empty(servers(1, 2, 3)))
	b.Release(res)
	b.Appended(5, 1, 2, 0)
	want("it leads again", 0, 1002, 0)
	b.End()
	other.End()
	want("nobody leads", 0, 0, 0)
}

// TestReserve: a write is admitted if every voter that is heard has room for it beside what is on its way.
//
// Guards, in Reserve: OutBytes (without it: "on its way"), allocates, the silence, and the voters.
func TestReserve(t *testing.T) {
	const floor = 1000
	for _, test := range []struct {
		name      string
		told, own int64
		onItsWay  int64
		silent    time.Duration
		learner   bool
		allocates bool
		ok        bool
	}{
		{"room", 1100, 1100, 0, 0, false, true, true},
		{"none", 1099, 1100, 0, 0, false, true, false},
		{"none here", 1100, 1099, 0, 0, false, true, false},
		{"on its way", 1199, 1100, 100, 0, false, true, false},
		{"beside what is on its way", 1200, 1100, 100, 0, false, true, true},
		{"exhausted", ^1100, 1100, 0, 0, false, true, false},
		{"exhausted here", 1100, ^1100, 0, 0, false, true, false},
		{"exhausted, and it overwrites", ^1100, ^1100, 0, 0, false, false, true},
		{"silent", 0, 1100, 100, time.Minute + time.Second, false, true, true},
		{"silent for less", 0, 1100, 100, time.Minute - time.Second, false, true, false},
		{"displaced", Displaced, 1100, 100, 0, false, true, true},
		{"displaced here", 1100, Displaced, 0, 0, false, true, true},
		{"displaced here, and it is short", 1099, Displaced, 0, 0, false, true, false},
		{"most are displaced", Displaced, Displaced, 0, 0, false, false, false},
		{"it learns", 0, 1100, 100, 0, true, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := New(time.Minute)
				b := l.Book(server(1))
				b.Begin(1, empty(append(servers(1, 3), Server{ID: server(2), Voter: !test.learner})))
				b.Told(server(2), test.told)
				if test.onItsWay > 0 {
					b.Appended(1, 1, test.onItsWay, 0)
				}
				time.Sleep(test.silent)
				res, room, ok := b.Reserve(100, floor, test.own, test.allocates)
				if ok != test.ok {
					t.Errorf("admitted: %v, %+v", ok, room)
				}
				if got := l.Outstanding(store(1)); ok != (got == 100) || !ok && res != (Reservation{}) {
					t.Errorf("%d bytes are reserved, %+v", got, res)
				}
			})
		})
	}
	if _, _, ok := New(0).Book(server(1)).Reserve(1, floor, 0, true); !ok {
		t.Error("refused by one that does not lead: it is not for want of room")
	}
}

// TestNeverMoreThanTold: groups that write as fast as they can to one store, which answers late and in any order, never have more on
// their way than it has said that it may take.
func TestNeverMoreThanTold(t *testing.T) {
	const told, floor = 100_000, 40_000
	l := New(time.Hour)
	var wg sync.WaitGroup
	for g := range 8 {
		b := l.Book(server(1))
		b.Begin(1, empty(servers(1, 2)))
		b.Told(server(2), told)
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			acked, index := uint64(0), uint64(0)
			for range 5000 {
				n := int64(1 + rng.IntN(9000))
				if res, _, ok := b.Reserve(n, floor, plenty, true); ok {
					if out := l.Outstanding(store(2)); out > 2*(told-floor) { // refused ones of others are in it for a moment
						t.Errorf("%d bytes are on their way", out)
					}
					if rng.IntN(4) == 0 {
						b.Release(res)
						continue
					}
					index++
					b.Appended(1, index, n, n)
				} else if acked < index {
					acked += 1 + rng.Uint64N(index-acked)
					b.Acked(server(2), 1, acked)
				}
			}
			b.Acked(server(2), 1, index)
		})
	}
	wg.Wait()
	if out := l.Outstanding(store(2)); out != 0 {
		t.Errorf("%d bytes are still on their way", out)
	}
}

// TestNothingIsAllocated for a write, once a book has grown to what it holds.
func TestNothingIsAllocated(t *testing.T) {
	l := New(time.Minute)
	b := l.Book(server(1))
	b.Begin(1, empty(servers(1, 2, 3)))
	index := uint64(0)
	write := func() {
		index++
		if _, _, ok := b.Reserve(4096, 0, plenty, true); !ok {
			t.Fatal("refused")
		}
		b.Appended(1, index, 4096, 4096)
		for _, s := range []byte{2, 3} {
			id := ids[s]
			b.Told(id, plenty)
			b.Acked(id, 1, index)
		}
		if index%1000 == 0 {
			b.Dropped(index)
		}
	}
	for range 2500 {
		write()
	}
	if n := testing.AllocsPerRun(5000, write); n != 0 {
		t.Errorf("%v allocations for a write", n)
	}
}

var ids = map[byte]string{2: server(2), 3: server(3)}

func BenchmarkWrite(b *testing.B) {
	l := New(time.Minute)
	book := l.Book(server(1))
	book.Begin(1, empty(servers(1, 2, 3)))
	two, three := server(2), server(3)
	index := uint64(0)
	for b.Loop() {
		index++
		book.Reserve(4096, 0, plenty, true)
		book.Appended(1, index, 4096, 4096)
		book.Acked(two, 1, index)
		book.Acked(three, 1, index)
		if index%4096 == 0 {
			book.Dropped(index)
		}
	}
}
