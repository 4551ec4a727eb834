package attach

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
)

// fuseServer serves one FUSE connection: a file system with one file, which is an export. The kernel bounds what it works
// on (maxBackground), and so its goroutines and memory.
type fuseServer struct {
	fd       *os.File // non-blocking
	export   nbd.Export
	readOnly bool
	name     string
	logger   *slog.Logger
	resends  func(bool) // told when INIT says whether the kernel knows notifyResend

	ctx      context.Context // ends when nothing that is being served will be answered any more
	cancel   context.CancelFunc
	stopping atomic.Bool
	wg       sync.WaitGroup // requests being served
	buffers  *sync.Pool     // the driver's
	share    *fuseShare
	ended    chan struct{} // closed when the reading has ended
	gone     atomic.Bool   // because the kernel has ended the connection; written before ended is closed
	// unanswered says that something was read and left for whoever serves next.
	unanswered atomic.Bool
}

func newFuseServer(d *FUSE, fd *os.File, export nbd.Export, r Request) *fuseServer {
	s := &fuseServer{fd: fd, export: export, readOnly: r.ReadOnly, name: r.Name, logger: d.config.Logger, ended: make(chan struct{}),
		resends: func(bool) {}, buffers: &d.buffers, share: &fuseShare{budget: d.budget}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// run reads requests until the connection ends or stop is called. Each is served by a goroutine of its own.
func (s *fuseServer) run() {
	defer close(s.ended)
	for {
		buf, _ := s.buffers.Get().(*[]byte)
		n, err := s.fd.Read(*buf)
		switch {
		case err == nil:
			s.dispatch(buf, n)
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // interrupted before it was read
			s.buffers.Put(buf)
		case s.stopping.Load():
			return
		default: // ENODEV: unmounted, or aborted
			s.gone.Store(true)
			if !errors.Is(err, unix.ENODEV) && !errors.Is(err, fs.ErrClosed) {
				s.logger.Error("FUSE connection lost", "device", s.name, "error", err)
			}
			return
		}
	}
}

// stop ends the reading, waits for the answers to what was read for as long as ctx lasts, and leaves the rest unanswered:
// the kernel sends it again to whoever serves next.
func (s *fuseServer) stop(ctx context.Context) {
	s.stopping.Store(true)
	s.share.stop()
	_ = s.fd.SetReadDeadline(time.Unix(1, 0)) // a descriptor without deadlines was never made: newFuseServer's are pollable
	<-s.ended
	done := make(chan struct{}) // closed by the goroutine below
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	s.cancel()
	<-done
}

// smallBytes is up to what size a request is copied out of the buffer it was read into, so that the buffer is free again.
const smallBytes = 20 << 10

func (s *fuseServer) dispatch(buf *[]byte, n int) {
	b := (*buf)[:n]
	release := func() { s.buffers.Put(buf) }
	if n <= smallBytes {
		b = append(make([]byte, 0, n), b...)
		s.buffers.Put(buf)
		release = func() {}
	}
	h, err := parseInHeader(b)
	if err != nil {
		s.logger.Error("FUSE request not understood", "device", s.name, "error", err)
		release()
		return
	}
	// Nothing more is read from the kernel while too much is held: it keeps the rest. What a request holds is what came with
	// it, and room for the answer to a READ.
	cost := int64(n)
	if n > smallBytes {
		cost = requestBytes
	}
	if r, _, err := parseIO(b[inHeaderBytes:]); err == nil && h.op == opRead {
		cost += int64(min(r.length, maxIOBytes))
	}
	s.share.take(cost)
	s.wg.Go(func() {
		defer s.share.give(cost)
		defer release()
		s.serve(h, b[inHeaderBytes:])
	})
}

// serve answers one request, unless nobody waits for an answer, or the serving was stopped before there was one.
func (s *fuseServer) serve(h inHeader, body []byte) {
	var answer []byte
	var err error
	switch h.op {
	case opForget, opBatchForget, opInterrupt:
		return // no answer; nothing here needs to be forgotten or can be interrupted
	case opRead:
		answer, err = s.read(h, body)
	case opWrite:
		answer, err = s.write(h, body)
	case opFsync:
		err = s.export.Flush(s.ctx)
	case opFallocate:
		err = s.fallocate(body)
	default:
		s.serveName(h, body)
		return
	}
	if err != nil && s.ctx.Err() != nil {
		s.unanswered.Store(true)
		return
	}
	s.answer(h, answer, err)
}

// serveName serves what is not about the file's bytes.
func (s *fuseServer) serveName(h inHeader, body []byte) {
	out := appendOutHeader(nil, h.unique, 0)
	size := s.export.Info().SizeBytes
	switch h.op {
	case opInit:
		init, resends, err := initAnswer(body)
		if err != nil {
			s.logger.Error("FUSE connection refused", "device", s.name, "error", err)
			s.send(finishOut(appendOutHeader(nil, h.unique, syscall.EPROTO)))
			return
		}
		s.resends(resends)
		out = appendStruct(out, init)
	case opLookup:
		if string(body) != diskName+"\x00" || h.node != rootNode {
			out = appendOutHeader(nil, h.unique, syscall.ENOENT)
			break
		}
		out = appendStruct(out, &fuse.EntryOut{NodeId: diskNode, Generation: 1, EntryValid: 3600,
			Attr: attrOf(diskNode, int64(size), s.readOnly)})
	case opGetattr:
		out = appendStruct(out, &fuse.AttrOut{Attr: attrOf(h.node, int64(size), s.readOnly)})
	case opOpen:
		out = appendStruct(out, &fuse.OpenOut{Fh: 1, OpenFlags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH})
	case opOpendir:
		out = appendStruct(out, &fuse.OpenOut{})
	case opStatfs:
		out = appendStruct(out, &fuse.StatfsOut{Blocks: size / storage.BlockSize, Bsize: storage.BlockSize, Frsize: storage.BlockSize,
			Files: 1, NameLen: 255})
	case opReaddir, opFlush, opRelease, opReleasedir, opDestroy: // nothing to say
	default:
		out = appendOutHeader(nil, h.unique, syscall.ENOSYS)
	}
	s.send(finishOut(out))
}

func (s *fuseServer) answer(h inHeader, out []byte, err error) {
	errno := errnoOf(err)
	if err != nil && errno == syscall.EIO {
		s.logger.Debug("request failed", "device", s.name, "op", h.op, "error", err)
	}
	if errno != 0 || out == nil {
		out = appendOutHeader(nil, h.unique, errno)
	}
	s.send(finishOut(out))
}

// send hands an answer to the kernel. ENOENT: nobody waits for it any more.
func (s *fuseServer) send(b []byte) {
	if _, err := s.fd.Write(b); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		s.logger.Error("the kernel refuses an answer", "device", s.name, "bytes", len(b), "error", err)
	}
}

func (s *fuseServer) read(h inHeader, body []byte) ([]byte, error) {
	r, _, err := parseIO(body)
	if err != nil || r.length > maxIOBytes {
		return nil, storage.E("read", storage.KindInvalid, "device "+s.name, err)
	}
	size := s.export.Info().SizeBytes
	n := min(r.length, size-min(size, r.offset))
	out := make([]byte, outHeaderBytes+n)
	appendOutHeader(out[:0], h.unique, 0)
	if n == 0 {
		return out, nil
	}
	return out, s.export.ReadAt(s.ctx, out[outHeaderBytes:], int64(r.offset))
}

func (s *fuseServer) write(h inHeader, body []byte) ([]byte, error) {
	r, data, err := parseIO(body)
	end, ok := r.end()
	switch {
	case err != nil || !ok || uint64(len(data)) != r.length || r.length == 0:
		return nil, storage.E("write", storage.KindInvalid, "device "+s.name, err)
	case s.readOnly:
		return nil, storage.E("write", storage.KindPermission, "device "+s.name, errors.New("it is read-only"))
	case end > int64(s.export.Info().SizeBytes):
		return nil, storage.E("write", storage.KindNoSpace, "device "+s.name, errors.New("the range leaves the device"))
	}
	if err := s.export.WriteAt(s.ctx, data, int64(r.offset)); err != nil {
		return nil, err
	}
	out := appendOutHeader(make([]byte, 0, outHeaderBytes+8), h.unique, 0)
	return appendStruct(out, &fuse.WriteOut{Size: uint32(r.length)}), nil
}

// fallocate serves what a loop device makes of discard and write-zeroes: to punch a hole, or to zero a range.
func (s *fuseServer) fallocate(body []byte) error {
	r, err := parseFallocate(body)
	size := int64(s.export.Info().SizeBytes)
	end, ok := r.end()
	switch {
	case err != nil || !ok:
		return storage.E("fallocate", storage.KindInvalid, "device "+s.name, err)
	case s.readOnly:
		return storage.E("fallocate", storage.KindPermission, "device "+s.name, errors.New("it is read-only"))
	}
	n := min(end, size) - int64(r.offset)
	if n <= 0 {
		return nil
	}
	switch r.mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case unix.FALLOC_FL_PUNCH_HOLE:
		return s.export.WriteZeroes(s.ctx, int64(r.offset), n, false)
	case unix.FALLOC_FL_ZERO_RANGE:
		return s.export.WriteZeroes(s.ctx, int64(r.offset), n, true)
	}
	return storage.E("fallocate", storage.KindUnsupported, "device "+s.name, nil)
}
