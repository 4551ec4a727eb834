package transfer

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	storage "github.com/storaged/storaged"
)

// part is a piece of the volume on its way to the sink. For data, done gets one value when buf is filled or the read has
// failed.
type part struct {
	off, n int64
	buf    []byte
	done   chan error
}

// Export copies the beginning of a volume.
type Export struct {
	Content  Content
	Subject  string // names the volume in errors
	Jobs     int    // reads in flight, 1 to MaxJobs
	Sum      Digest // of all bytes
	Progress func(bytes int64)
}

// Copy copies sizeBytes: it asks for pieces in order, has up to Jobs reads in flight, and writes them in order. It
// returns how many bytes were read. Whether the sink commits is up to the caller.
func (e *Export) Copy(ctx context.Context, out Sink, sizeBytes int64) (int64, error) {
	g, ctx := errgroup.WithContext(ctx)
	free := make(chan []byte, e.Jobs)
	for range e.Jobs {
		free <- make([]byte, pieceBytes)
	}
	parts := make(chan part, e.Jobs) // in order; closed by the planner
	g.Go(func() error {
		defer close(parts)
		return e.plan(ctx, g, sizeBytes, free, parts)
	})
	var read int64
	g.Go(func() error {
		for p := range parts {
			if p.buf == nil {
				e.Sum.Zeroes(p.n)
				if err := out.Zeroes(p.off, p.n); err != nil {
					return err
				}
			} else {
				if err := <-p.done; err != nil {
					return err
				}
				e.Sum.Data(p.buf)
				if err := out.Data(p.buf, p.off); err != nil {
					return err
				}
				read += p.n
				free <- p.buf[:pieceBytes]
			}
			e.Progress(p.n)
		}
		return ctx.Err()
	})
	err := g.Wait()
	return read, err
}

// send hands v on, unless ctx ends.
func send[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case to <- v:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// plan asks what the volume holds and starts the reads.
func (e *Export) plan(ctx context.Context, g *errgroup.Group, size int64, free <-chan []byte, parts chan<- part) error {
	for off := int64(0); off < size; {
		runs, err := e.Content.Runs(ctx, off, min(size-off, statusPieceBytes))
		if err != nil {
			return err
		}
		from := off
		for _, r := range runs {
			for end := off + r.Bytes; off < end; {
				p := part{off: off, n: end - off}
				if !r.Zero {
					p.n = min(p.n, pieceBytes-off%pieceBytes)
					select {
					case buf := <-free:
						p.buf, p.done = buf[:p.n], make(chan error, 1)
					case <-ctx.Done():
						return ctx.Err()
					}
					g.Go(func() error {
						err := e.Content.ReadAt(ctx, p.buf, p.off)
						p.done <- err
						return err
					})
				}
				if err := send(ctx, parts, p); err != nil {
					return err
				}
				off += p.n
			}
		}
		if off == from {
			return storage.E("ask for holes of", storage.KindInternal, e.Subject, errors.New("the server described nothing"))
		}
	}
	return nil
}
