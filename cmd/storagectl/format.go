package main

import (
	"errors"
	"fmt"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
)

// checkFormat refuses an input that is not a disk's bytes: nothing could read the volume it would make.
func (i *importer) checkFormat(src transfer.Source) error {
	if i.raw {
		return nil
	}
	head, err := src.Head()
	if err != nil {
		return err
	}
	f, known := transfer.ImageFormatOf(head)
	if !known {
		return nil
	}
	return storage.E("import", storage.KindInvalid, i.path, fmt.Errorf("it is a %s, not the bytes of a disk. Convert it:\n%s\n"+
		"--format raw imports it as it stands", f.Name, i.conversion(f)))
}

// conversion is the command line that imports what checkFormat refused.
func (i *importer) conversion(f transfer.ImageFormat) string {
	again := "storagectl volume import "
	if f.Qemu != "" {
		from, to := shellWord(i.path), shellWord(i.path+".raw")
		if i.path == "-" {
			from, to = "FILE", "FILE.raw"
		}
		create := ""
		if i.create {
			create = " --create"
		}
		return fmt.Sprintf("qemu-img convert -f %s -O raw %s %s && %s%s %s%s", f.Qemu, from, to, again, to, i.volume, create)
	}
	create := ""
	if i.create {
		create = " --create --size SIZE"
	}
	from := f.Unpack + " -dc " + shellWord(i.path)
	if i.path == "-" {
		from = "... | " + f.Unpack + " -dc"
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
func formatFlag(raw *bool) *valueFlag {
	return &valueFlag{kind: "FORMAT", read: func(s string) error {
		if *raw = s == "raw"; !*raw {
			return errors.New("only raw can be imported; convert others with 'qemu-img convert -O raw FROM TO'")
		}
		return nil
	}}
}
