package sched

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestYieldHearsOfDescriptors: on one processor, who waits for a descriptor that is ready runs when long work gives way. It guards
// poller.yield (tried: with runtime.Gosched in its place, the reader has not run after hundreds of turns).
func TestYieldHearsOfDescriptors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	p, err := newPoller(0)
	if err != nil {
		t.Fatal(err)
	}
	go p.run()
	defer func() { _ = p.event.Close() }()
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(fd), "other")
	defer func() { _ = other.Close() }()
	var reads atomic.Int64
	go func() {
		var counter [8]byte
		for {
			if _, err := other.Read(counter[:]); err != nil {
				return
			}
			reads.Add(1)
		}
	}()
	for round := range int64(500) {
		if _, err := unix.Write(fd, one); err != nil {
			t.Fatal(err)
		}
		p.yield()
		for range 3 { // the reader may stand behind others that are ready
			runtime.Gosched()
		}
		if n := reads.Load(); n != round+1 {
			t.Fatalf("after %d events the reader has seen %d", round+1, n)
		}
	}
}

// TestYieldAfterTheEnd: nobody waits for a poller that is gone.
func TestYieldAfterTheEnd(t *testing.T) {
	if err := AskPoller(); err != nil {
		t.Fatal(err)
	}
	p := asking.Load()
	_ = p.event.Close()
	for asking.Load() != nil {
		Yield()
		runtime.Gosched()
	}
	<-p.ask()
	Yield()
}
