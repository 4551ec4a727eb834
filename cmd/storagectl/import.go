package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

func newVolumeImport(a *app) *cobra.Command {
	var flags transferFlags
	var create bool
	var size sizeFlag
	var format formatFlag
	c := &cobra.Command{
		Use:   "import FILE|- VOLUME",
		Short: "Fill a volume from a file or from standard input",
		Long: `Copies a file, a block device or standard input ("-") to the beginning of a volume, over NBD. What the volume holds
behind that stays.

Holes of the file and blocks of zeroes are not sent: in a volume that --create just made they are left out, elsewhere the
volume is told to be zero there. Several requests are in flight. The import has succeeded when everything is durable.

The input is the bytes of a disk. What begins like a qcow2, VMDK, VHD, VHDX or VDI image, or like a file that gzip, xz,
zstd or bzip2 made, is refused with the command that converts it; --format raw imports it as it stands.

--create makes the volume first, as large as the file (rounded up to 4096 bytes) or as --size says; standard input needs
--size. When an import fails, what was copied so far stays in the volume, and the import can be run again without
--create.`,
		Example: "  storagectl volume import disk.img web --create\n  zcat disk.img.gz | storagectl volume import - web --create --size 20G --checksum",
		Args: func(c *cobra.Command, args []string) error {
			return errors.Join(takes("FILE", "VOLUME")(c, args), flags.check())
		},
		ValidArgsFunction: a.completeTransfer(1),
		RunE: func(c *cobra.Command, args []string) error {
			i := importer{app: a, flags: flags, path: args[0], volume: args[1], format: format, create: create, size: size}
			err := unlessInterrupted(c.Context(), func() error { return i.run(c.Context()) })
			if err != nil && c.Context().Err() != nil {
				return interrupted{i.leaves()}
			}
			return err
		},
	}
	flags.register(c)
	c.Flags().BoolVar(&create, "create", false, "make the volume")
	c.Flags().Var(&format, "format", "raw: import the bytes as they are, whatever they look like")
	c.Flags().Var(&size, "size", "with --create: size of the volume; 10G = 10GiB")
	return c
}

// importer is one import. Its fields are set before run; workers share what comes after sent.
type importer struct {
	app          *app
	flags        transferFlags
	path, volume string
	format       formatFlag
	create       bool
	size         sizeFlag

	device   device
	progress *progress
	sent     atomic.Int64 // bytes of data that the volume took
	stage    atomic.Int32 // how far the volume has changed: one of the stages
}

// Stages of an import.
const (
	stageUntouched int32 = iota
	stageAsked           // the volume was asked for; it may be there
	stageCreated
	stageFilled // in part
)

// subject names the object of errors.
func (i *importer) subject() string { return "volume " + i.volume }

func (i *importer) run(ctx context.Context) error {
	src, err := openSource(i.path, i.app.in)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := i.checkFormat(src); err != nil {
		return err
	}
	if i.create {
		if err := i.makeVolume(ctx, src.SizeBytes()); err != nil {
			return err
		}
	}
	if i.device, err = i.app.openVolume(ctx, i.volume, i.flags.connections); err != nil {
		return i.incomplete(err)
	}
	defer i.device.Close()
	if n := src.SizeBytes(); n > i.device.SizeBytes() {
		return storage.E("import", storage.KindInvalid, i.subject(), fmt.Errorf("%s has %s, the volume only %s; grow it with 'storagectl volume resize %s --size %d'",
			i.path, formatSize(n), formatSize(i.device.SizeBytes()), i.volume, roundUp(n)))
	}
	began := i.app.now()
	i.progress = i.app.newProgress("import "+i.volume, src.SizeBytes(), i.flags.quiet)
	sum := newDigest(i.flags.checksum)
	i.stage.Store(stageFilled)
	n, err := i.copy(ctx, src, sum)
	if err == nil {
		err = i.device.Flush(ctx)
	}
	i.progress.stop()
	if err != nil {
		return i.incomplete(err)
	}
	view := transferView{Volume: i.volume, File: i.path, Bytes: n, DataBytes: i.sent.Load(), SHA256: sum.String()}
	view.ZeroBytes = n - view.DataBytes
	view.took(i.app.now().Sub(began))
	return i.app.showTransfer(i.app.out, view, "imported", i.flags.quiet)
}

// makeVolume makes the volume as large as the source, or as the flag says.
func (i *importer) makeVolume(ctx context.Context, sourceBytes int64) error {
	bytes := i.size.bytes
	if !i.size.set {
		if sourceBytes < 0 {
			return storage.E("create", storage.KindInvalid, i.subject(), errors.New("the size of the input is not known; say it with --size"))
		}
		bytes = max(roundUp(sourceBytes), storage.MinVolumeBytes)
	}
	if sourceBytes > bytes {
		return storage.E("create", storage.KindInvalid, i.subject(), fmt.Errorf("%s has %s, the volume would have only %s; say --size %d, or nothing",
			i.path, formatSize(sourceBytes), formatSize(bytes), roundUp(sourceBytes)))
	}
	client, err := i.app.client()
	if err != nil {
		return err
	}
	i.stage.Store(stageAsked)
	_, err = client.CreateVolume(ctx, api.NewVolume{Name: i.volume, SizeBytes: bytes})
	switch {
	case errors.Is(err, storage.ErrExists):
		return fmt.Errorf("%w; to fill that one, import without --create", err)
	case err == nil:
		i.stage.Store(stageCreated)
	}
	return err
}

// roundUp returns the smallest size of a volume that holds n bytes.
func roundUp(n int64) int64 {
	return (n + storage.BlockSize - 1) / storage.BlockSize * storage.BlockSize
}

// created is said of a volume that this import made and did not fill.
const created = "the volume was created and is incomplete: import again without --create, or delete it"

// leaves says what state an import that was interrupted leaves behind. It may run beside the import.
func (i *importer) leaves() string {
	switch stage := i.stage.Load(); {
	case stage == stageUntouched:
		return ""
	case stage == stageAsked:
		return fmt.Sprintf("the volume may have been created: 'storagectl volume show %s' says it", i.volume)
	case i.create:
		return created
	}
	return i.subject() + " holds a part of the input: import again"
}

// incomplete says what state an import that failed leaves behind.
func (i *importer) incomplete(err error) error {
	kind := storage.KindOf(err)
	if !i.create {
		return storage.E("import into", kind, i.subject(), err)
	}
	return storage.E("import into", kind, i.subject(),
		fmt.Errorf("%w; %s", err, created))
}

// piece is work for a worker: data, or with no data n bytes to be zeroed.
type piece struct {
	off  int64
	data []byte
	n    int64
}

// copy reads the source in one goroutine and writes from --jobs others. Buffers go around: at most one a job, and one
// that is being filled. It returns how many bytes the source had.
//
// The reader is not waited for when writing fails: it may hang in a read of standard input, which nothing can take back.
// It ends with its next read, or with the process.
func (i *importer) copy(ctx context.Context, src source, sum digest) (int64, error) {
	g, ctx := errgroup.WithContext(ctx)
	free := make(chan []byte, i.flags.jobs+1)
	for range i.flags.jobs + 1 {
		free <- make([]byte, pieceBytes)
	}
	work := make(chan piece)        // closed by the reader
	read := make(chan readEnded, 1) // one value, by the reader
	go func() {
		defer close(work)
		n, err := i.read(ctx, src, sum, free, work)
		read <- readEnded{n, err}
	}()
	for range i.flags.jobs {
		g.Go(func() error { return i.writeAll(ctx, work, free) })
	}
	var total int64
	g.Go(func() error {
		select {
		case r := <-read:
			total = r.bytes
			return r.err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	err := g.Wait()
	return total, err
}

// readEnded is what the reader saw: how many bytes, and why it ended before their end.
type readEnded struct {
	bytes int64
	err   error
}

// writeAll is a worker.
func (i *importer) writeAll(ctx context.Context, work <-chan piece, free chan<- []byte) error {
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
func (i *importer) read(ctx context.Context, src source, sum digest, free chan []byte, work chan<- piece) (int64, error) {
	size := i.device.SizeBytes()
	send := func(p piece) error {
		select {
		case work <- p:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
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
			return off, i.sendZeroes(zero, send)
		}
		if err != nil {
			return off, err
		}
		if n > size-off {
			return off, storage.E("import", storage.KindInvalid, i.subject(),
				fmt.Errorf("the input has more than the volume's %d bytes; the volume is filled with its beginning", size))
		}
		if data := buf[:min(n, int64(len(buf)))]; hole || isZero(data) {
			sum.zeroes(n)
			if zero.n == 0 {
				zero.off = off
			}
			zero.n += n
			free <- buf
		} else {
			sum.data(data)
			if err := i.sendZeroes(zero, send); err != nil {
				return off, err
			}
			zero = piece{}
			if err := send(piece{off: off, data: data}); err != nil {
				return off, err
			}
		}
		off += n
		if zero.n >= zeroPieceBytes {
			if err := i.sendZeroes(zero, send); err != nil {
				return off, err
			}
			zero = piece{}
		}
	}
}

// sendZeroes hands gathered zeroes on, in pieces; a volume that was just made holds nothing else.
func (i *importer) sendZeroes(zero piece, send func(piece) error) error {
	if i.create {
		i.progress.add(zero.n)
		return nil
	}
	for zero.n > 0 {
		n := min(zero.n, zeroPieceBytes)
		if err := send(piece{off: zero.off, n: n}); err != nil {
			return err
		}
		zero.off, zero.n = zero.off+n, zero.n-n
	}
	return nil
}

// write carries a piece out.
func (i *importer) write(ctx context.Context, p piece) error {
	if p.data == nil {
		err := i.device.WriteZeroes(ctx, p.off, p.n)
		i.progress.add(p.n)
		return err
	}
	return splitZeroes(p.data, p.off, func(data []byte, off int64, zero bool) error {
		n := int64(len(data))
		defer i.progress.add(n)
		switch {
		case zero && i.create:
			return nil
		case zero:
			return i.device.WriteZeroes(ctx, off, n)
		}
		if err := i.device.WriteAt(ctx, data, off); err != nil {
			return err
		}
		i.sent.Add(n)
		return nil
	})
}
