package diskio

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// uring reads files through an io_uring of its own: a read is handed to the kernel, and its end comes as an event on a
// descriptor that Go's poller watches. While the disk works neither a thread nor a processor of Go waits for it.
//
// The kernel writes into a buffer until it has posted the read's end, whatever happens in between. So read never
// returns before that, and knows no context: a disk that does not answer holds its readers, as pread(2) would.
//
// All reads may be concurrent; more than uringReads wait for each other. Close may be called when no read runs any
// more. Kernels before 5.6 are refused.
type uring struct {
	fd       int
	rings    []byte // shared with the kernel: indices, array, completions
	sqeBytes []byte // shared with the kernel: submissions

	// mu guards the submission side: sqes and the tail. It is held across io_uring_enter, which only starts the read.
	mu     sync.Mutex
	sqes   []uringSubmission
	sqHead *uint32 // moved by the kernel, within io_uring_enter
	sqTail *uint32
	sqMask uint32

	// The completion side belongs to the goroutine of run.
	cqes   []uringCompletion
	cqHead *uint32
	cqTail *uint32 // moved by the kernel, at any time
	cqMask uint32

	// slots are the reads that may be under way: as many as the rings have room for, so that neither overflows. free
	// holds the ones that are not in use.
	slots [uringReads]uringSlot
	free  chan *uringSlot

	event  *os.File // an eventfd: readable when the kernel has posted completions
	closed atomic.Bool
	gone   chan struct{} // closed by run
}

// uringReads is how many reads of a disk may be with the kernel at a time.
const uringReads = 128

// uringSlot is a read under way.
type uringSlot struct {
	index uint64
	buf   []byte     // keeps what the kernel writes into from being collected; nothing moves on the heap
	done  chan int32 // holds one; gets the read's result from run
}

// uringParams is struct io_uring_params of linux/io_uring.h.
type uringParams struct {
	sqEntries, cqEntries uint32
	flags                uint32
	sqThreadCPU          uint32
	sqThreadIdle         uint32
	features             uint32
	wqFD                 uint32
	_                    [3]uint32
	sq                   struct{ head, tail, ringMask, ringEntries, flags, dropped, array, _, _, _ uint32 }
	cq                   struct{ head, tail, ringMask, ringEntries, overflow, cqes, flags, _, _, _ uint32 }
}

// uringSubmission is struct io_uring_sqe of linux/io_uring.h.
type uringSubmission struct {
	opcode   uint8
	flags    uint8
	priority uint16
	fd       int32
	offset   uint64
	address  uint64
	length   uint32
	rwFlags  uint32
	userData uint64
	_        [3]uint64
}

// uringCompletion is struct io_uring_cqe of linux/io_uring.h.
type uringCompletion struct {
	userData uint64
	result   int32
	flags    uint32
}

const (
	uringOpRead          = 22 // IORING_OP_READ
	uringRegisterEventFD = 4  // IORING_REGISTER_EVENTFD
	uringOffSQEs         = 0x10000000
	// uringFeatures are IORING_FEAT_SINGLE_MMAP, _NODROP and _RW_CUR_POS; the last one came with IORING_OP_READ.
	uringFeatures = 1<<0 | 1<<1 | 1<<3
)

// newURing sets up a ring and starts the goroutine that waits for its completions.
func newURing() (*uring, error) {
	var p uringParams
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uringReads, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	u := &uring{fd: int(fd), free: make(chan *uringSlot, uringReads), gone: make(chan struct{})}
	err := u.mapRings(&p)
	if err == nil {
		err = u.registerEvent()
	}
	if err != nil {
		u.release()
		return nil, err
	}
	for i := range u.slots {
		u.slots[i].index = uint64(i)
		u.slots[i].done = make(chan int32, 1)
		u.free <- &u.slots[i]
	}
	go u.run()
	return u, nil
}

func (u *uring) mapRings(p *uringParams) error {
	if p.features&uringFeatures != uringFeatures {
		return fmt.Errorf("the kernel's io_uring has features %#x only", p.features)
	}
	if p.sqEntries < uringReads || p.cqEntries < uringReads {
		return fmt.Errorf("the kernel's io_uring has %d and %d entries; want %d", p.sqEntries, p.cqEntries, uringReads)
	}
	const cqeBytes, sqeBytes = uint32(unsafe.Sizeof(uringCompletion{})), uint32(unsafe.Sizeof(uringSubmission{}))
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*cqeBytes)
	var err error
	if u.rings, err = mapShared(u.fd, 0, size); err != nil {
		return err
	}
	if u.sqeBytes, err = mapShared(u.fd, uringOffSQEs, p.sqEntries*sqeBytes); err != nil {
		return err
	}
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&u.rings[offset])) }
	u.sqHead, u.sqTail, u.sqMask = at(p.sq.head), at(p.sq.tail), *at(p.sq.ringMask)
	u.cqHead, u.cqTail, u.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.ringMask)
	u.sqes = unsafe.Slice((*uringSubmission)(unsafe.Pointer(&u.sqeBytes[0])), p.sqEntries)
	u.cqes = unsafe.Slice((*uringCompletion)(unsafe.Pointer(&u.rings[p.cq.cqes])), p.cqEntries)
	for i, array := uint32(0), unsafe.Slice(at(p.sq.array), p.sqEntries); i < p.sqEntries; i++ {
		array[i] = i // place i of the queue is always submission i
	}
	return nil
}

func mapShared(fd int, offset int64, size uint32) ([]byte, error) {
	b, err := unix.Mmap(fd, offset, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	return b, os.NewSyscallError("mmap", err)
}

func (u *uring) registerEvent() error {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	u.event = os.NewFile(uintptr(fd), "eventfd of the disk's reads")
	number := int32(fd)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(u.fd), uringRegisterEventFD,
		uintptr(unsafe.Pointer(&number)), 1, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("io_uring_register", errno)
	}
	return nil
}

// errNotRead says that a read was not done, for a reason that may lie in the ring: do it without.
var errNotRead = errors.New("io_uring did not read")

// read fills buf with what is at the offset of the file, and returns how much it read. The descriptor must stay open.
// Like a system call it may read a part only, and nothing at the end of the file. EIO if the disk refuses, else
// errNotRead.
func (u *uring) read(fd uintptr, buf []byte, offset int64) (int, error) {
	s := <-u.free
	s.buf = buf
	err := u.submit(s, int32(fd), offset)
	result := int32(0)
	if err == nil {
		// Guards the reader's memory: until the kernel has posted the end it may write into buf.
		result = <-s.done
	}
	s.buf = nil
	u.free <- s
	if err != nil {
		return 0, err
	}
	switch {
	case result >= 0:
		return int(result), nil
	case unix.Errno(-result) == unix.EIO:
		return 0, os.NewSyscallError("read", unix.EIO)
	}
	return 0, errNotRead // as when the thread that submitted has ended; whatever it is, pread knows better
}

// submit starts the slot's read.
func (u *uring) submit(s *uringSlot, fd int32, offset int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	tail := *u.sqTail
	u.sqes[tail&u.sqMask] = uringSubmission{opcode: uringOpRead, fd: fd, offset: uint64(offset),
		address: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(s.buf)))), length: uint32(len(s.buf)), userData: s.index}
	atomic.StoreUint32(u.sqTail, tail+1)
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), 1, 0, 0, 0, 0)
		switch {
		case atomic.LoadUint32(u.sqHead) == tail+1:
			return nil // taken; what went wrong with it, if anything, is posted
		case errno == unix.EINTR || errno == 0:
			continue
		}
		// Nothing was taken, and the kernel looks at the tail in io_uring_enter only.
		atomic.StoreUint32(u.sqTail, tail)
		return errNotRead
	}
}

// run hands the results of reads to who waits for them, until close.
func (u *uring) run() {
	defer close(u.gone)
	var counter [8]byte
	for {
		if _, err := u.event.Read(counter[:]); err != nil {
			if u.closed.Load() {
				return
			}
			panic(fmt.Sprintf("diskio: wait for reads: %v", err)) // only a descriptor closed by somebody else
		}
		head := *u.cqHead
		for tail := atomic.LoadUint32(u.cqTail); head != tail; head++ {
			c := u.cqes[head&u.cqMask]
			atomic.StoreUint32(u.cqHead, head+1)
			u.slots[c.userData].done <- c.result
		}
	}
}

// close frees the ring. No read may be running.
func (u *uring) close() {
	u.closed.Store(true)
	_ = u.event.Close()
	<-u.gone
	u.release()
}

func (u *uring) release() {
	if u.event != nil {
		_ = u.event.Close()
	}
	_ = unix.Close(u.fd)
	if u.rings != nil {
		_ = unix.Munmap(u.rings)
	}
	if u.sqeBytes != nil {
		_ = unix.Munmap(u.sqeBytes)
	}
}
