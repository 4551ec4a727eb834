package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	storage "github.com/storaged/storaged"
)

func newVolumeExport(a *app) *cobra.Command {
	var flags transferFlags
	var force bool
	var length sizeFlag
	c := &cobra.Command{
		Use:   "export VOLUME FILE|-",
		Short: "Copy a volume to a file or to standard output",
		Long: `Copies a volume over NBD to a sparse file, a block device or standard output ("-"). What the volume does not hold is not
sent and becomes a hole. Several requests are in flight.

The file appears under its name when it is whole and durable; an export that fails leaves nothing behind. An existing
file is replaced only with --force. A volume that is written to meanwhile gives a copy of no single moment.`,
		Example: "  storagectl volume export web disk.img\n  storagectl volume export web - --checksum | zstd > web.zst",
		Args: func(c *cobra.Command, args []string) error {
			return errors.Join(takes("VOLUME", "FILE")(c, args), flags.check())
		},
		ValidArgsFunction: a.completeTransfer(0),
		RunE: func(c *cobra.Command, args []string) error {
			e := exporter{app: a, flags: flags, volume: args[0], path: args[1], force: force, length: length}
			return unlessInterrupted(c.Context(), func() error { return e.run(c.Context()) })
		},
	}
	flags.register(c)
	c.Flags().BoolVarP(&force, "force", "f", false, "replace an existing file")
	c.Flags().Var(&length, "length", "copy only so many bytes from the beginning")
	return c
}

// exporter is one export.
type exporter struct {
	app          *app
	flags        transferFlags
	volume, path string
	force        bool
	length       sizeFlag

	device   device
	progress *progress
}

func (e *exporter) run(ctx context.Context) error {
	var err error
	if e.device, err = e.app.openVolume(ctx, e.volume, e.flags.connections); err != nil {
		return storage.E("export", storage.KindOf(err), "volume "+e.volume, err)
	}
	defer e.device.Close()
	size := e.device.SizeBytes()
	if e.length.set {
		if e.length.bytes > size {
			return storage.E("export", storage.KindInvalid, "volume "+e.volume,
				fmt.Errorf("--length is %d, but the volume has %d bytes", e.length.bytes, size))
		}
		size = e.length.bytes
	}
	out, err := openSink(e.path, e.app.out, e.force)
	if err != nil {
		return err
	}
	began := e.app.now()
	e.progress = e.app.newProgress("export "+e.volume, size, e.flags.quiet)
	sum := newDigest(e.flags.checksum)
	data, err := e.copy(ctx, out, size, sum)
	e.progress.stop()
	if err != nil {
		return storage.E("export", storage.KindOf(err), "volume "+e.volume, errors.Join(err, out.Abort()))
	}
	if err := out.Commit(size); err != nil {
		return err
	}
	view := transferView{Volume: e.volume, File: e.path, Bytes: size, DataBytes: data, ZeroBytes: size - data, SHA256: sum.String()}
	view.took(e.app.now().Sub(began))
	to := e.app.out
	if e.path == "-" {
		to = e.app.err
	}
	return e.app.showTransfer(to, view, "exported", e.flags.quiet)
}

// showTransfer prints the outcome to w, which standard output is only if no data went there.
func (a *app) showTransfer(w io.Writer, view transferView, verb string, quiet bool) error {
	to := *a
	to.out = w
	return to.show(view, func(w io.Writer, _ bool) {
		if !quiet {
			fmt.Fprintln(w, view.summary(verb))
		}
		if view.SHA256 != "" {
			fmt.Fprintf(w, "sha256 %s\n", view.SHA256)
		}
	})
}

// part is a piece of the volume on its way to the sink. For data, done gets one value when buf is filled or the read has
// failed.
type part struct {
	off, n int64
	buf    []byte
	done   chan error
}

// copy asks for pieces in order, has up to --jobs reads in flight, and writes them in order. It returns how many bytes
// were read.
func (e *exporter) copy(ctx context.Context, out sink, size int64, sum digest) (int64, error) {
	g, ctx := errgroup.WithContext(ctx)
	free := make(chan []byte, e.flags.jobs)
	for range e.flags.jobs {
		free <- make([]byte, pieceBytes)
	}
	parts := make(chan part, e.flags.jobs) // in order; closed by the planner
	g.Go(func() error {
		defer close(parts)
		return e.plan(ctx, g, size, free, parts)
	})
	var read int64
	g.Go(func() error {
		for p := range parts {
			if p.buf == nil {
				sum.zeroes(p.n)
				if err := out.Zeroes(p.off, p.n); err != nil {
					return err
				}
			} else {
				if err := <-p.done; err != nil {
					return err
				}
				sum.data(p.buf)
				if err := out.Data(p.buf, p.off); err != nil {
					return err
				}
				read += p.n
				free <- p.buf[:pieceBytes]
			}
			e.progress.add(p.n)
		}
		return ctx.Err()
	})
	err := g.Wait()
	return read, err
}

// plan asks what the volume holds and starts the reads.
func (e *exporter) plan(ctx context.Context, g *errgroup.Group, size int64, free <-chan []byte, parts chan<- part) error {
	send := func(p part) error {
		select {
		case parts <- p:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for off := int64(0); off < size; {
		runs, err := e.device.Runs(ctx, off, min(size-off, statusPieceBytes))
		if err != nil {
			return err
		}
		from := off
		for _, r := range runs {
			for end := off + r.bytes; off < end; {
				p := part{off: off, n: end - off}
				if !r.zero {
					p.n = min(p.n, pieceBytes-off%pieceBytes)
					select {
					case buf := <-free:
						p.buf, p.done = buf[:p.n], make(chan error, 1)
					case <-ctx.Done():
						return ctx.Err()
					}
					g.Go(func() error {
						err := e.device.ReadAt(ctx, p.buf, p.off)
						p.done <- err
						return err
					})
				}
				if err := send(p); err != nil {
					return err
				}
				off += p.n
			}
		}
		if off == from {
			return storage.E("ask for holes of", storage.KindInternal, "volume "+e.volume, errors.New("the server described nothing"))
		}
	}
	return nil
}
