package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
)

func newVolumeExport(a *app) *cobra.Command {
	var flags transferFlags
	var force bool
	var length *int64
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
	c.Flags().Var(sizeFlag(&length), "length", "copy only so many bytes from the beginning")
	return c
}

// exporter is one export.
type exporter struct {
	app          *app
	flags        transferFlags
	volume, path string
	force        bool
	length       *int64 // nil: all
}

func (e *exporter) run(ctx context.Context) error {
	subject := "volume " + e.volume
	content, err := e.app.openVolume(ctx, e.volume, e.flags.connections)
	if err != nil {
		return storage.E("export", storage.KindOf(err), subject, err)
	}
	defer content.Close()
	size := content.SizeBytes()
	if e.length != nil {
		if *e.length > size {
			return storage.E("export", storage.KindInvalid, subject,
				fmt.Errorf("--length is %d, but the volume has %d bytes", *e.length, size))
		}
		size = *e.length
	}
	out, err := transfer.OpenSink(e.path, e.app.out, e.force)
	if err != nil {
		return err
	}
	began := e.app.now()
	progress := e.app.newProgress("export "+e.volume, size, e.flags.quiet)
	job := transfer.Export{Content: content, Subject: subject, Jobs: e.flags.jobs, Sum: transfer.NewDigest(e.flags.checksum), Progress: progress.add}
	data, err := job.Copy(ctx, out, size)
	progress.stop()
	if err != nil {
		return storage.E("export", storage.KindOf(err), subject, errors.Join(err, out.Abort()))
	}
	if err := out.Commit(size); err != nil {
		return err
	}
	view := transferView{Volume: e.volume, File: e.path, Bytes: size, DataBytes: data, ZeroBytes: size - data, SHA256: job.Sum.String()}
	to := e.app.out
	if e.path == "-" {
		to = e.app.err
	}
	return e.app.showTransfer(to, view, "exported", began, e.flags.quiet)
}

// showTransfer prints the outcome to w, which standard output is only if no data went there.
func (a *app) showTransfer(w io.Writer, view transferView, verb string, began time.Time, quiet bool) error {
	if took := a.now().Sub(began).Seconds(); took > 0 {
		view.Seconds, view.MBPerS = took, float64(view.Bytes)/1e6/took
	}
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
