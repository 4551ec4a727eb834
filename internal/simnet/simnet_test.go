package simnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

// pair returns the two ends of a connection from machine a to machine b.
func pair(t testing.TB, n *Network) (a, b net.Conn) {
	t.Helper()
	l, err := n.Machine("b").Listen(":0")
	if err != nil {
		t.Fatal(err)
	}
	a, err = n.Machine("a").Dial(context.Background(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestConnConforms(t *testing.T) {
	for name, link := range map[string]Link{"direct": {}, "delayed": {Delay: 50 * time.Microsecond, Jitter: 50 * time.Microsecond}} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				a, b := pair(t, New(Config{Link: link}))
				return a, b, func() { a.Close(); b.Close() }, nil
			})
		})
	}
}

func write(t testing.TB, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, c net.Conn, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// silentFor fails the test if anything can be read from c within d.
func silentFor(t testing.TB, c net.Conn, d time.Duration) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes and %v, want silence", n, err)
	}
	c.SetReadDeadline(time.Time{})
}

func TestDelayAndRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Link: Link{Delay: 10 * time.Millisecond, BytesPerSecond: 1000}})
		began := time.Now()
		a, b := pair(t, n)
		defer a.Close()
		defer b.Close()
		if d := time.Since(began); d != 20*time.Millisecond {
			t.Errorf("connected after %v, want a round trip of 20ms", d)
		}
		began = time.Now()
		write(t, a, strings.Repeat("x", 100))
		read(t, b, 100)
		if d := time.Since(began); d != 110*time.Millisecond {
			t.Errorf("100 bytes took %v, want 110ms", d)
		}
	})
}

func TestCutHoldsAndHealDeliversWithoutGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Link: Link{Delay: 10 * time.Millisecond}})
		a, b := pair(t, n)
		defer a.Close()
		defer b.Close()
		write(t, a, "arrived")
		<-time.After(15 * time.Millisecond)
		write(t, a, "lost on its way, ")
		n.Cut("a", "b")
		write(t, a, "written in the dark")
		if s := read(t, b, 7); s != "arrived" {
			t.Errorf("read %q: what had arrived before the cut is there", s)
		}
		silentFor(t, b, time.Hour)
		write(t, b, "back") // the other direction works
		if s := read(t, a, 4); s != "back" {
			t.Errorf("read %q", s)
		}
		began := time.Now()
		n.Heal("a", "b")
		if s := read(t, b, 36); s != "lost on its way, written in the dark" {
			t.Errorf("read %q after healing", s)
		}
		if d := time.Since(began); d != 10*time.Millisecond {
			t.Errorf("delivered %v after healing, want 10ms", d)
		}
	})
}

func TestIsolateStopsDialing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		l, _ := n.Machine("b").Listen(":7")
		defer l.Close()
		n.Isolate("b")
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := n.Machine("a").Dial(ctx, "b:7"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dialing an isolated machine: %v", err)
		}
		time.AfterFunc(time.Minute, func() { n.Rejoin("b") })
		began := time.Now()
		c, err := n.Machine("a").Dial(context.Background(), "b:7")
		if err != nil || time.Since(began) != time.Minute {
			t.Fatalf("dialed after %v: %v", time.Since(began), err)
		}
		c.Close()
		if _, err := n.Machine("a").Dial(context.Background(), "b:8"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dialing where nobody listens: %v", err)
		}
	})
}

func TestFrozenReaderBoundsTheWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{BufferBytes: 1000})
		a, b := pair(t, n)
		defer a.Close()
		defer b.Close()
		n.Freeze("b")
		a.SetWriteDeadline(time.Now().Add(time.Second))
		sent, err := a.Write(make([]byte, 5000))
		if sent != 1000 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("wrote %d bytes to a frozen machine and %v, want its buffer's 1000", sent, err)
		}
		time.AfterFunc(time.Second, func() { n.Thaw("b") })
		began := time.Now()
		read(t, b, 1000)
		if d := time.Since(began); d != time.Second {
			t.Errorf("a frozen machine read after %v", d)
		}
	})
}

func TestFrozenWriterIsHeldUntilThaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{Link: Link{Delay: time.Millisecond}})
		a, b := pair(t, n)
		defer a.Close()
		defer b.Close()
		write(t, a, "old")
		n.Freeze("a")
		a.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a frozen machine wrote: %v", err)
		}
		silentFor(t, b, time.Minute)
		n.Thaw("a")
		if s := read(t, b, 3); s != "old" {
			t.Errorf("read %q after the thaw", s)
		}
	})
}

func TestResetCrashAndPowerOff(t *testing.T) {
	end := map[string]func(*Network){
		"reset": func(n *Network) { n.CutBoth("a", "b"); n.Reset("a", "b") },
		"crash": func(n *Network) { n.Crash("a") },
	}
	for name, do := range end {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := New(Config{})
				a, b := pair(t, n)
				defer a.Close()
				defer b.Close()
				time.AfterFunc(time.Second, func() { do(n) })
				if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("read: %v, want a reset", err)
				}
				if _, err := b.Write([]byte("x")); err == nil {
					t.Error("a write after the reset succeeded")
				}
				if _, err := a.Read(make([]byte, 1)); err == nil {
					t.Error("a read at the other end succeeded")
				}
			})
		})
	}
	t.Run("power off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := New(Config{BufferBytes: 10})
			a, b := pair(t, n)
			defer a.Close()
			defer b.Close()
			n.PowerOff("a")
			silentFor(t, b, time.Hour)
			b.SetWriteDeadline(time.Now().Add(time.Hour))
			if sent, err := b.Write(make([]byte, 100)); sent != 10 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("wrote %d bytes and %v", sent, err)
			}
			l, err := n.Machine("a").Listen(":1") // back again
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read: %v, want a reset once the machine is back", err)
			}
		})
	})
}

func TestCloseInPartitionIsNotNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a, b := pair(t, n)
		defer b.Close()
		write(t, a, "last words")
		n.CutBoth("a", "b")
		a.Close()
		if s := read(t, b, 10); s != "last words" {
			t.Errorf("read %q", s)
		}
		silentFor(t, b, time.Hour)
		n.HealBoth("a", "b")
		if _, err := b.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read: %v, want EOF after healing", err)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write: %v, want EPIPE", err)
		}
	})
}

// TestSameSeedSameArrivals runs two conversations that are scheduled differently: arrival times depend on the seed
// only, and bytes keep their order although jitter differs from write to write.
func TestSameSeedSameArrivals(t *testing.T) {
	arrivals := func(seed uint64, noise int) (times []time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			n := New(Config{Seed: seed, Link: Link{Delay: time.Millisecond, Jitter: time.Second}})
			a, b := pair(t, n)
			defer a.Close()
			defer b.Close()
			for range noise { // other links draw from other sources
				c, d := pair(t, New(Config{Seed: seed}))
				c.Close()
				d.Close()
			}
			began := time.Now()
			for i := range 20 {
				write(t, a, string(rune('a'+i)))
			}
			var got bytes.Buffer
			for range 20 {
				got.WriteString(read(t, b, 1))
				times = append(times, time.Since(began))
			}
			if got.String() != "abcdefghijklmnopqrst" {
				t.Errorf("read %q", got.String())
			}
		})
		return times
	}
	first, second, other := arrivals(1, 0), arrivals(1, 5), arrivals(2, 0)
	same := true
	for i := range first {
		if first[i] != second[i] {
			t.Fatalf("byte %d arrived after %v and %v", i, first[i], second[i])
		}
		same = same && first[i] == other[i]
	}
	if same {
		t.Error("another seed gave the same arrivals")
	}
}
