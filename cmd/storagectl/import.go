package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/internal/transfer"
)

func newVolumeImport(a *app) *cobra.Command {
	var flags transferFlags
	var create bool
	var overcommit bool
	var size *int64
	var raw bool
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
			i := importer{app: a, flags: flags, path: args[0], volume: args[1], raw: raw, create: create, size: size, overcommit: overcommit}
			err := unlessInterrupted(c.Context(), func() error { return i.run(c.Context()) })
			if err != nil && c.Context().Err() != nil {
				return interrupted{i.leaves()}
			}
			return err
		},
	}
	flags.register(c)
	c.Flags().BoolVar(&create, "create", false, "make the volume")
	c.Flags().Var(formatFlag(&raw), "format", "raw: import the bytes as they are, whatever they look like")
	c.Flags().BoolVar(&overcommit, "overcommit", false, "with --create: "+overcommitHelp)
	c.Flags().Var(sizeFlag(&size), "size", "with --create: size of the volume; 10G = 10GiB")
	return c
}

// importer is one import. Its fields are set before run.
type importer struct {
	app          *app
	flags        transferFlags
	path, volume string
	raw          bool // whatever the bytes look like
	create       bool
	size         *int64
	overcommit   bool

	stage atomic.Int32 // how far the volume has changed: one of the stages
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
	src, err := transfer.OpenSource(i.path, i.app.in)
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
	content, err := i.app.openVolume(ctx, i.volume, i.flags.connections)
	if err != nil {
		return i.incomplete(err)
	}
	defer content.Close()
	if n := src.SizeBytes(); n > content.SizeBytes() {
		return storage.E("import", storage.KindInvalid, i.subject(), fmt.Errorf("%s has %s, the volume only %s; grow it with 'storagectl volume resize %s --size %d'",
			i.path, formatSize(n), formatSize(content.SizeBytes()), i.volume, roundUp(n)))
	}
	began := i.app.now()
	progress := i.app.newProgress("import "+i.volume, src.SizeBytes(), i.flags.quiet)
	i.stage.Store(stageFilled)
	job := transfer.Import{Content: content, Subject: i.subject(), Jobs: i.flags.jobs, Blank: i.create, Sum: transfer.NewDigest(i.flags.checksum),
		Progress: progress.add}
	n, sent, err := job.Copy(ctx, src)
	if err == nil {
		err = content.Flush(ctx)
	}
	progress.stop()
	if err != nil {
		return i.incomplete(err)
	}
	view := transferView{Volume: i.volume, File: i.path, Bytes: n, DataBytes: sent, ZeroBytes: n - sent, SHA256: job.Sum.String()}
	return i.app.showTransfer(i.app.out, view, "imported", began, i.flags.quiet)
}

// makeVolume makes the volume as large as the source, or as the flag says.
func (i *importer) makeVolume(ctx context.Context, sourceBytes int64) error {
	bytes := max(roundUp(sourceBytes), storage.MinVolumeBytes)
	switch {
	case i.size != nil:
		bytes = *i.size
	case sourceBytes < 0:
		return storage.E("create", storage.KindInvalid, i.subject(), errors.New("the size of the input is not known; say it with --size"))
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
	_, err = client.CreateVolume(ctx, api.NewVolume{Name: i.volume, SizeBytes: bytes, Overcommit: i.overcommit})
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
