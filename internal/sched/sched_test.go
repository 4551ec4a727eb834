package sched

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestYieldHearsOfDescriptors: on one processor, who waits for a descriptor that is ready runs when long work gives way. It guards
// poller.yield (tried: with runtime.Gosched in its place, the reader is late nearly always).
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
	descriptor, err := other.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var reads atomic.Int64
	go func() {
		var counter [8]byte
		_ = descriptor.Read(func(fd uintptr) bool {
			// Not by way of the runtime: in a system call that it knows of it may lend the processor to others.
			if _, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&counter)), 8); errno == 0 {
				reads.Add(1)
			}
			return false
		})
	}()
	const rounds = 500
	late := 0
	for round := range int64(rounds) {
		if _, err := unix.Write(fd, one); err != nil {
			t.Fatal(err)
		}
		p.yield()
		for range 1000 { // the reader is ready, and stands behind others: a hundred times shorter than the runtime's 10 ms
			if reads.Load() > round {
				break
			}
			runtime.Gosched()
		}
		if reads.Load() <= round { // the kernel may have stopped the thread that has heard of it
			late++
		}
		for reads.Load() <= round {
			runtime.Gosched()
		}
	}
	if late > rounds/2 {
		t.Errorf("%d of %d times the reader had not run", late, rounds)
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
