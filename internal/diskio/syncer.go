package diskio

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Syncer syncs files without blocking a thread in the kernel: the sync is handed to Linux AIO (io_submit(2),
// IOCB_CMD_FDSYNC or IOCB_CMD_FSYNC) and its end comes as an event on a descriptor that Go's poller watches.
//
// A goroutine blocked in fdatasync(2) costs more than its thread. Go's scheduler lends it a processor until its monitor
// notices that the call lasts, which the monitor does by waking every 20 us as long as such calls happen: on a node that
// syncs two thousand times a second this was a quarter of the CPU of a replicated 4 KiB write, and with one processor
// everything else stood still meanwhile.
//
// The kernel runs vfs_fsync on the file that the descriptor stands for, as fdatasync does, and the result says the same:
// an error of writing back any page since the file was opened or last synced.
//
// It writes zeroes in the same way, for segments that are filled ahead of time, and what goes around the page cache (Writer).
//
// It belongs to one goroutine. The zero value is ready; Close frees what it holds.
type Syncer struct {
	context aioContext
	event   *os.File // nil: not set up yet
	eventFD uint32
	refused bool // the kernel or its policy has no AIO: syncs block
	counter [8]byte
}

// aioContext is aio_context_t of linux/aio_abi.h.
type aioContext uintptr

// aioControl is struct iocb of linux/aio_abi.h on little-endian machines.
type aioControl struct {
	_       uint64 // aio_data
	_       uint32 // aio_key
	rwFlags uint32
	opcode  uint16
	_       int16 // aio_reqprio
	fd      uint32
	buffer  uint64
	bytes   uint64
	offset  int64
	_       uint64 // aio_reserved2
	flags   uint32
	eventFD uint32
}

// aioEvent is struct io_event of linux/aio_abi.h.
type aioEvent struct {
	data, object    uint64
	result, result2 int64
}

const (
	aioWrite     = 1 // IOCB_CMD_PWRITE
	aioFSync     = 2 // IOCB_CMD_FSYNC
	aioFDSync    = 3 // IOCB_CMD_FDSYNC
	aioWriteV    = 8 // IOCB_CMD_PWRITEV
	aioEventFD   = 1 // IOCB_FLAG_RESFD
	aioQueueSize = 1
)

// SyncData brings the file's data, and what is needed to find it, to the disk. Files of other file systems than the
// kernel's sync in their own way.
func (s *Syncer) SyncData(f vfs.File) error {
	if done, err := s.sync(f, aioFDSync); done {
		return err
	}
	return f.SyncData()
}

// Sync is SyncData, and brings all else that the file system knows of the file, or the directory, to the disk as well.
func (s *Syncer) Sync(f vfs.File) error {
	if done, err := s.sync(f, aioFSync); done {
		return err
	}
	return f.Sync()
}

// sync is not done if nothing was started.
func (s *Syncer) sync(f vfs.File, opcode uint16) (done bool, err error) {
	if !s.Possible(f) {
		return false, nil
	}
	if s.submit(&aioControl{opcode: opcode, fd: uint32(f.Fd())}) != nil {
		return false, nil //nolint:nilerr // nothing was started: there is another way
	}
	_, err = s.wait()
	runtime.KeepAlive(f)
	return true, err
}

// Possible reports whether the kernel can work on the file by itself.
func (s *Syncer) Possible(f vfs.File) bool {
	return f.Fd() != vfs.InvalidFd && s.ready()
}

// ready reports whether the kernel's AIO can be used.
func (s *Syncer) ready() bool {
	if s.refused {
		return false
	}
	if s.event == nil && s.setUp() != nil {
		s.refused = true
		return false
	}
	return true
}

func (s *Syncer) setUp() error {
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, aioQueueSize, uintptr(unsafe.Pointer(&s.context)), 0); errno != 0 {
		return os.NewSyscallError("io_setup", errno)
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		s.destroy()
		return os.NewSyscallError("eventfd", err)
	}
	s.eventFD = uint32(fd)
	s.event = os.NewFile(uintptr(fd), "eventfd of the disk's syncs")
	return nil
}

// submit starts what control says. After an error nothing was started, and nothing is tried any more.
func (s *Syncer) submit(control *aioControl) error {
	control.flags, control.eventFD = aioEventFD, s.eventFD
	list := [1]*aioControl{control}
	// To start a sync is to queue it. To start a write may mean to wait, for room in the disk's queue or in the journal: on
	// a disk that hangs, for ever. The runtime must hear of it, or all of the process waits with it.
	waits := control.opcode == aioWrite || control.opcode == aioWriteV
	for {
		var n uintptr
		var errno unix.Errno
		if waits {
			n, _, errno = unix.Syscall(unix.SYS_IO_SUBMIT, uintptr(s.context), 1, uintptr(unsafe.Pointer(&list)))
		} else {
			n, _, errno = unix.RawSyscall(unix.SYS_IO_SUBMIT, uintptr(s.context), 1, uintptr(unsafe.Pointer(&list)))
		}
		switch {
		case errno == unix.EINTR || errno == 0 && n == 0:
			continue
		case errno != 0:
			s.refused = true
			return os.NewSyscallError("io_submit", errno)
		}
		return nil
	}
}

// wait waits for the end of what was started, and returns its result. Whatever goes wrong here leaves unknown whether the
// data is durable, and is an error.
func (s *Syncer) wait() (int64, error) {
	if _, err := s.event.Read(s.counter[:]); err != nil {
		return 0, fmt.Errorf("wait for the kernel's AIO: %w", err)
	}
	var (
		event aioEvent
		now   unix.Timespec
	)
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_IO_GETEVENTS, uintptr(s.context), 1, 1, uintptr(unsafe.Pointer(&event)),
			uintptr(unsafe.Pointer(&now)), 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return 0, os.NewSyscallError("io_getevents", errno)
		case n != 1:
			return 0, errors.New("wait for the kernel's AIO: it announced an event and had none")
		case event.result < 0:
			return 0, os.NewSyscallError("write or sync", unix.Errno(-event.result))
		}
		return event.result, nil
	}
}

func (s *Syncer) destroy() {
	_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, uintptr(s.context), 0, 0)
	s.context = 0
}

// Close frees the kernel's queue. No sync may be running.
func (s *Syncer) Close() {
	if s.event == nil {
		return
	}
	_ = s.event.Close()
	s.event = nil
	s.destroy()
}

// SyncDir makes durable which files a directory holds.
func (s *Syncer) SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(Synced(s.Sync(d)), d.Close())
}

// SyncDir is Syncer.SyncDir for those who may block a thread.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
