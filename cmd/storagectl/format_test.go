package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// What is not raw is refused before the volume is made, with the command that makes it raw; --format raw takes it as it is.
func TestImportRefusesOtherFormats(t *testing.T) {
	at := func(off int, magic string) []byte {
		p := noise(3, 64<<10)
		copy(p[off:], magic)
		return p
	}
	for name, c := range map[string]struct {
		content []byte
		want    string // the command
	}{
		"qcow2":           {at(0, "QFI\xfb\x00\x00\x00\x03"), "qemu-img convert -f qcow2 -O raw 'DIR/a disk' "},
		"vmdk":            {at(0, "KDMV\x01\x00\x00\x00"), "qemu-img convert -f vmdk -O raw "},
		"vmdk descriptor": {at(0, "# Disk DescriptorFile\nversion=1\n"), "qemu-img convert -f vmdk -O raw "},
		"vhdx":            {at(0, "vhdxfile"), "qemu-img convert -f vhdx -O raw "},
		"vhd":             {at(0, "conectix"), "qemu-img convert -f vpc -O raw "},
		"vdi":             {at(64, "\x7f\x10\xda\xbe"), "qemu-img convert -f vdi -O raw "},
		"gzip":            {at(0, "\x1f\x8b\x08"), "gzip -dc 'DIR/a disk' | storagectl volume import - web --create --size SIZE"},
		"xz":              {at(0, "\xfd7zXZ\x00"), "xz -dc 'DIR/a disk' | storagectl volume import - web"},
		"zstd":            {at(0, "\x28\xb5\x2f\xfd"), "zstd -dc 'DIR/a disk' | storagectl volume import - web"},
		"bzip2":           {at(0, "BZh91AY&SY"), "bzip2 -dc 'DIR/a disk' | storagectl volume import - web"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			path := filepath.Join(t.TempDir(), "a disk")
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			fromStdin := func(a *app) { a.in = bytes.NewReader(c.content) }
			got := r.run("volume", "import", path, "web", "--create")
			wantCode(t, got, storage.KindInvalid)
			for _, want := range []string{strings.ReplaceAll(c.want, "DIR", filepath.Dir(path)), "--format raw"} {
				if !strings.Contains(got.err, want) {
					t.Errorf("said %q, want %q", got.err, want)
				}
			}
			got = r.runWith(fromStdin, "volume", "import", "-", "web", "--create", "--size", "8M")
			wantCode(t, got, storage.KindInvalid)
			wantCode(t, r.run("volume", "show", "web"), storage.KindNotFound)

			r.must("volume", "import", path, "web", "--create", "--format", "raw")
			if !bytes.Equal(contents(r.volumes.volume("web", 64<<10)), c.content) {
				t.Error("with --format raw the volume does not hold the file")
			}
			if got := r.runWith(fromStdin, "volume", "import", "-", "web", "--format", "raw"); got.code != 0 {
				t.Error(got.err)
			}
		})
	}
	r := newRig(t)
	got := r.run("volume", "import", "disk.img", "web", "--format", "qcow2")
	wantCode(t, got, storage.KindInvalid)
	if !strings.Contains(got.err, "qemu-img convert") {
		t.Errorf("said %q", got.err)
	}
}

// A file that --size leaves no room for is refused before the volume is made.
func TestImportChecksSizeBeforeItCreates(t *testing.T) {
	r := newRig(t)
	path, _ := sparseFile(t, 3<<20, nil)
	got := r.run("volume", "import", path, "web", "--create", "--size", "1M")
	wantCode(t, got, storage.KindInvalid)
	if !strings.Contains(got.err, "--size 3145728") {
		t.Errorf("said %q", got.err)
	}
	wantCode(t, r.run("volume", "show", "web"), storage.KindNotFound)
}

// A full disk of this host is not taken for the cluster's.
func TestExportToFullDisk(t *testing.T) {
	r := newRig(t)
	r.create("web", 1<<20).Store(noise(1, 1<<20), 0)
	got := r.run("volume", "export", "web", "/dev/full")
	wantCode(t, got, storage.KindNoSpace)
	if strings.Contains(got.err, "more nodes") || !strings.Contains(got.err, "this host") {
		t.Errorf("said %q", got.err)
	}
	full := transfer.LocalError("write", "/mnt/a/disk.img", &fs.PathError{Op: "write", Path: "/mnt/a/.x", Err: syscall.ENOSPC})
	hint := new(app).hint(t.Context(), storage.E("export", storage.KindNoSpace, "volume web", errors.Join(full, nil)))
	if !strings.Contains(hint, "/mnt/a ") || !strings.Contains(hint, "this host") {
		t.Errorf("hint %q", hint)
	}
	ofCluster := storage.E("import into", storage.KindNoSpace, "volume web", nil)
	if hint := new(app).hint(t.Context(), ofCluster); !strings.Contains(hint, "fstrim") || !strings.Contains(hint, "--capacity") || strings.Contains(hint, "stores") {
		t.Errorf("hint %q", hint) // a store that is added takes nothing of the groups that are full
	}
}

// Who interrupts an import is told what state the volume is in.
func TestInterruptedImportSaysWhatItLeaves(t *testing.T) {
	file, _ := sparseFile(t, 8<<20, map[int64][]byte{0: noise(2, 8<<20)})
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"created":           {[]string{"--create"}, "interrupted; the volume was created and is incomplete: import again without --create, or delete it"},
		"there before":      {nil, "interrupted; volume web holds a part of the input: import again"},
		"as JSON":           {[]string{"--create", "-o", "json"}, "interrupted; the volume was created and is incomplete: import again without --create, or delete it"},
		"silent input":      {[]string{"--create", "--size", "8M"}, "interrupted; the volume was created and is incomplete"},
		"nothing was begun": {[]string{"--create", "--size", "8M"}, "interrupted\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			v := r.volumes.volume("web", 8<<20)
			if name == "there before" {
				v = r.create("web", 8<<20)
			}
			v.Before(func(call nbdtest.Call) error {
				if call.Name == "write" {
					cancel()
					<-call.Ctx.Done()
				}
				return call.Ctx.Err()
			})
			in := &silentAfter{data: noise(1, 1<<20), ended: t.Context().Done(), silent: cancel}
			path := file
			switch name {
			case "silent input":
				path = "-"
			case "nothing was begun":
				path, in.data = "-", nil
			}
			var errs syncBuffer
			a := r.app(&errs, &errs)
			a.in = in
			if code := a.run(ctx, append([]string{"volume", "import", path, "web"}, c.args...)); code != 130 {
				t.Errorf("exit code %d", code)
			}
			said := errs.String()
			if name == "as JSON" {
				var view errorView
				if err := json.Unmarshal([]byte(said), &view); err != nil || view.Error.Kind != "canceled" {
					t.Errorf("%q is not the error (%v)", said, err)
				}
				said = view.Error.Message
			}
			if !strings.Contains(said, c.want) {
				t.Errorf("said %q, want %q", said, c.want)
			}
		})
	}
}

// silentAfter is an input that says nothing after its data; silent is called when it falls silent.
type silentAfter struct {
	data   []byte
	ended  <-chan struct{}
	silent func()
}

func (s *silentAfter) Read(p []byte) (int, error) {
	if len(s.data) > 0 {
		n := copy(p, s.data)
		s.data = s.data[n:]
		return n, nil
	}
	s.silent()
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
	}
	return 0, context.Canceled
}
