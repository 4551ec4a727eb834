package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheck: an executable that names an interpreter, which is the dynamic linker, is not static.
func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		segment elf.ProgType
		says    string
	}{{elf.PT_LOAD, ""}, {elf.PT_INTERP, "linked dynamically"}} {
		path := filepath.Join(t.TempDir(), "binary")
		if err := os.WriteFile(path, executable(t, tc.segment), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := check(path); (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("with a segment %v: %v", tc.segment, err)
		}
	}
	if err := check("main.go"); err == nil {
		t.Error("a source is no executable")
	}
}

// executable returns an ELF file of one segment.
func executable(t *testing.T, segment elf.ProgType) []byte {
	t.Helper()
	header := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64,
		Phentsize: 56, Phnum: 1}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS], header.Ident[elf.EI_DATA], header.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var b bytes.Buffer
	for _, part := range []any{header, elf.Prog64{Type: uint32(segment)}} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}
