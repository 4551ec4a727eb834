// Package sched lets long work on few processors take turns with those who wait for the network or the disk.
//
// Go's scheduler asks the kernel which descriptors are ready when no goroutine is ready to run, and otherwise every 10 ms at most
// (runtime.findRunnable, runtime.sysmon). runtime.Gosched changes nothing about it: whoever calls it is ready to run. So on one processor
// each hop of a client's write, and each sync of the log, which ends by an event of a descriptor, waits for up to 10 ms as long as
// compaction works, however often that gives way.
package sched

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// every is how often the poller is asked at most. Less often costs those who wait, more often costs the work: two system calls and two
// switches of goroutines.
const every = 100 * time.Microsecond

// asking is the process's way to ask the poller; nil: there is none.
var asking atomic.Pointer[poller]

// Yield lets run what is ready. Work that takes longer than a millisecond calls it every few microseconds. It must not be called with a
// lock held that a client's request wants.
func Yield() {
	if p := asking.Load(); p != nil {
		p.yield()
		return
	}
	runtime.Gosched()
}

// AskPoller has Yield let Go's poller look which descriptors are ready, from now on.
func AskPoller() error {
	p, err := newPoller(every)
	if err == nil {
		go p.run()
		asking.Store(p)
	}
	return err
}

// poller makes the runtime ask the kernel: a descriptor becomes ready, and who waits for it can run only when the runtime has heard
// of it, and of all that was ready before.
type poller struct {
	begun time.Time
	every time.Duration
	last  atomic.Int64 // when the runtime was asked, since begun
	event *os.File
	fd    int

	mu    sync.Mutex
	asked chan struct{} // closed when it has heard; nil: nobody waits
	gone  bool          // nothing is heard any more
}

func newPoller(every time.Duration) (*poller, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &poller{begun: time.Now(), every: every, fd: fd, event: os.NewFile(uintptr(fd), "eventfd of turns")}, nil
}

func (p *poller) yield() {
	now := int64(time.Since(p.begun))
	if last := p.last.Load(); now-last < int64(p.every) || !p.last.CompareAndSwap(last, now) {
		return
	}
	<-p.ask()
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// ask makes the descriptor ready.
func (p *poller) ask() (asked <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked != nil {
		return p.asked
	}
	c := make(chan struct{})
	p.asked = c
	if p.gone || !p.wakeLocked() {
		p.answerLocked()
	}
	return c
}

// wakeLocked makes the descriptor ready; false if it is already.
func (p *poller) wakeLocked() bool {
	_, err := unix.Write(p.fd, one)
	return err == nil
}

// run waits for the descriptor, and tells who waits.
func (p *poller) run() {
	var counter [8]byte
	for {
		_, err := p.event.Read(counter[:])
		if err != nil {
			asking.CompareAndSwap(p, nil)
		}
		p.mu.Lock()
		p.gone = err != nil
		p.answerLocked()
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (p *poller) answerLocked() {
	if p.asked != nil {
		close(p.asked)
		p.asked = nil
	}
}
