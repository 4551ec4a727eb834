package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	storage "github.com/storaged/storaged"
)

// piece is work for a worker: data, or with no data n bytes to be zeroed.
type piece struct {
	off  int64
	data []byte
	n    int64
}

// Import fills a volume from its beginning.
type Import struct {
	Content Content
	Subject string // names the volume in errors
	Jobs    int    // writes in flight, 1 to MaxJobs
	// Blank says that the volume reads as zeroes and nobody else writes to it: zeroes are left out. Elsewhere the volume is
	// told to be zero there.
	Blank    bool
	Sum      Digest // of all bytes
	Progress func(bytes int64)

	sent atomic.Int64 // bytes of data that the volume took
}

// Copy reads the source in one goroutine and writes from Jobs others. Buffers go around: at most one a job, and one
// that is being filled. It returns how many bytes the source had, and how many of them were sent. Nothing is durable
// before the volume is flushed.
//
// The reader is not waited for when writing fails: it may hang in a read of standard input, which nothing can take back.
// It ends with its next read, or with the process.
func (i *Import) Copy(ctx context.Context, src Source) (total, sent int64, err error) {
	g, ctx := errgroup.WithContext(ctx)
	free := make(chan []byte, i.Jobs+1)
	for range i.Jobs + 1 {
		free <- make([]byte, pieceBytes)
	}
	work := make(chan piece)        // closed by the reader
	read := make(chan readEnded, 1) // one value, by the reader
	go func() {
		defer close(work)
		n, err := i.read(ctx, src, free, work)
		read <- readEnded{n, err}
	}()
	for range i.Jobs {
		g.Go(func() error { return i.writeAll(ctx, work, free) })
	}
	g.Go(func() error {
		select {
		case r := <-read:
			total = r.bytes
			return r.err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	err = g.Wait()
	return total, i.sent.Load(), err
}

// readEnded is what the reader saw: how many bytes, and why it ended before their end.
type readEnded struct {
	bytes int64
	err   error
}

// writeAll is a worker.
func (i *Import) writeAll(ctx context.Context, work <-chan piece, free chan<- []byte) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p, ok := <-work:
			if !ok {
				return nil
			}
			if err := i.write(ctx, p); err != nil {
				return err
			}
			if p.data != nil {
				free <- p.data[:cap(p.data)]
			}
		}
	}
}

// read cuts the source into pieces. Neighbouring zeroes are gathered into large ones.
func (i *Import) read(ctx context.Context, src Source, free chan []byte, work chan<- piece) (int64, error) {
	size := i.Content.SizeBytes()
	var off int64
	var zero piece // gathered, not sent yet
	for {
		var buf []byte
		select {
		case buf = <-free:
		case <-ctx.Done():
			return off, ctx.Err()
		}
		n, hole, err := src.Next(buf[:pieceBytes-off%pieceBytes])
		if errors.Is(err, io.EOF) {
			return off, i.sendZeroes(ctx, &zero, work)
		}
		if err != nil {
			return off, err
		}
		if n > size-off {
			return off, storage.E("import", storage.KindInvalid, i.Subject,
				fmt.Errorf("the input has more than the volume's %d bytes; the volume is filled with its beginning", size))
		}
		if data := buf[:min(n, int64(len(buf)))]; hole || isZero(data) {
			i.Sum.Zeroes(n)
			if zero.n == 0 {
				zero.off = off
			}
			zero.n += n
			free <- buf
		} else {
			i.Sum.Data(data)
			if err := i.sendZeroes(ctx, &zero, work); err != nil {
				return off, err
			}
			if err := send(ctx, work, piece{off: off, data: data}); err != nil {
				return off, err
			}
		}
		off += n
		if zero.n >= zeroPieceBytes {
			if err := i.sendZeroes(ctx, &zero, work); err != nil {
				return off, err
			}
		}
	}
}

// sendZeroes hands gathered zeroes on, in pieces, until none are left; a volume that was just made holds nothing else.
func (i *Import) sendZeroes(ctx context.Context, zero *piece, work chan<- piece) error {
	if i.Blank {
		i.Progress(zero.n)
		*zero = piece{}
	}
	for zero.n > 0 {
		n := min(zero.n, zeroPieceBytes)
		if err := send(ctx, work, piece{off: zero.off, n: n}); err != nil {
			return err
		}
		zero.off, zero.n = zero.off+n, zero.n-n
	}
	return nil
}

// write carries a piece out.
func (i *Import) write(ctx context.Context, p piece) error {
	if p.data == nil {
		err := i.Content.WriteZeroes(ctx, p.off, p.n)
		i.Progress(p.n)
		return err
	}
	return splitZeroes(p.data, p.off, func(data []byte, off int64, zero bool) error {
		n := int64(len(data))
		defer i.Progress(n)
		switch {
		case zero && i.Blank:
			return nil
		case zero:
			return i.Content.WriteZeroes(ctx, off, n)
		}
		if err := i.Content.WriteAt(ctx, data, off); err != nil {
			return err
		}
		i.sent.Add(n)
		return nil
	})
}
