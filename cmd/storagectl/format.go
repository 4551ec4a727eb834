package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	storage "github.com/storaged/storaged"
)

// imageFormat is a format that is not a disk's bytes, and is known by bytes near its beginning.
type imageFormat struct {
	name   string
	offset int
	magic  string
	// qemu is what qemu-img calls a disk image; unpack is the program that unpacks what is compressed. One of the two is set.
	qemu, unpack string
}

// imageFormats are those that people import by mistake. No boot sector and no file system begins like one of them.
var imageFormats = []imageFormat{
	{name: "qcow2 image", magic: "QFI\xfb", qemu: "qcow2"},
	{name: "VMDK image", magic: "KDMV", qemu: "vmdk"},
	{name: "VMDK image", magic: "COWD", qemu: "vmdk"},
	{name: "VMDK descriptor", magic: "# Disk DescriptorFile", qemu: "vmdk"},
	{name: "VHDX image", magic: "vhdxfile", qemu: "vhdx"},
	{name: "VHD image", magic: "conectix", qemu: "vpc"},
	{name: "VDI image", offset: 64, magic: "\x7f\x10\xda\xbe", qemu: "vdi"},
	{name: "gzip file", magic: "\x1f\x8b\x08", unpack: "gzip"},
	{name: "xz file", magic: "\xfd7zXZ\x00", unpack: "xz"},
	{name: "zstd file", magic: "\x28\xb5\x2f\xfd", unpack: "zstd"},
	{name: "bzip2 file", magic: "BZh", unpack: "bzip2"},
}

// headBytes is how much of the input's beginning tells the format.
const headBytes = 128

// formatOf finds the format of an input that begins with head.
func formatOf(head []byte) (imageFormat, bool) {
	for _, f := range imageFormats {
		if len(head) > f.offset && bytes.HasPrefix(head[f.offset:], []byte(f.magic)) {
			return f, true
		}
	}
	return imageFormat{}, false
}

// checkFormat refuses an input that is not a disk's bytes: nothing could read the volume it would make.
func (i *importer) checkFormat(src source) error {
	if i.format.raw {
		return nil
	}
	head, err := src.Head()
	if err != nil {
		return err
	}
	f, known := formatOf(head)
	if !known {
		return nil
	}
	return storage.E("import", storage.KindInvalid, i.path, fmt.Errorf("it is a %s, not the bytes of a disk. Convert it:\n%s\n"+
		"--format raw imports it as it stands", f.name, i.conversion(f)))
}

// conversion is the command line that imports what checkFormat refused.
func (i *importer) conversion(f imageFormat) string {
	again := "storagectl volume import "
	if f.qemu != "" {
		from, to := shellWord(i.path), shellWord(i.path+".raw")
		if i.path == "-" {
			from, to = "FILE", "FILE.raw"
		}
		create := ""
		if i.create {
			create = " --create"
		}
		return fmt.Sprintf("qemu-img convert -f %s -O raw %s %s && %s%s %s%s", f.qemu, from, to, again, to, i.volume, create)
	}
	create := ""
	if i.create {
		create = " --create --size SIZE"
	}
	from := f.unpack + " -dc " + shellWord(i.path)
	if i.path == "-" {
		from = "... | " + f.unpack + " -dc"
	}
	return fmt.Sprintf("%s | %s- %s%s", from, again, i.volume, create)
}

// shellWord writes s as one word of a shell's command line.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./+,:=@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// formatFlag is the flag --format.
type formatFlag struct{ raw bool }

// String implements pflag.Value.
func (f *formatFlag) String() string {
	if f.raw {
		return "raw"
	}
	return ""
}

// Set implements pflag.Value.
func (f *formatFlag) Set(s string) error {
	if s != "raw" {
		return errors.New("only raw can be imported; convert others with 'qemu-img convert -O raw FROM TO'")
	}
	f.raw = true
	return nil
}

// Type implements pflag.Value; it is what help shows.
func (f *formatFlag) Type() string { return "FORMAT" }

// newStream returns a source that reads r, and can look at its beginning before.
func newStream(r io.Reader) streamSource { return streamSource{bufio.NewReaderSize(r, 4096)} }

// Head implements source. It waits for the beginning.
func (s streamSource) Head() ([]byte, error) {
	head, err := s.r.Peek(headBytes)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head, localError("read", "the input", err)
}

// Head implements source.
func (s *fileSource) Head() ([]byte, error) {
	head := make([]byte, headBytes)
	n, err := s.f.ReadAt(head, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return head[:n], localError("read", s.f.Name(), err)
}
