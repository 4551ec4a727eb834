package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

// noise returns n bytes of which none of a block's is zero for long.
func noise(seed uint64, n int) []byte {
	random := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, 0, n+8)
	for len(p) < n {
		p = binary.LittleEndian.AppendUint64(p, random.Uint64()|0x0101010101010101)
	}
	return p[:n:n]
}

// TestNBDAddress: what is not an address is refused as such, and nobody looks for it.
func TestNBDAddress(t *testing.T) {
	for _, text := range []string{"[::1", "::1]", "a:b:c", "nbd://a:10809", "a:0", "0.0.0.0"} {
		if _, err := Dial(t.Context(), Target{Address: text, Volume: "db"}); !errors.Is(err, storage.ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestSplitZeroes(t *testing.T) {
	type stretch struct {
		off, n int64
		zero   bool
	}
	p := noise(1, 5*4096)
	clear(p[4096 : 3*4096])
	for _, c := range []struct {
		p    []byte
		off  int64
		want []stretch
	}{
		{nil, 0, nil},
		{p, 0, []stretch{{0, 4096, false}, {4096, 8192, true}, {12288, 8192, false}}},
		{p[:4097], 8192, []stretch{{8192, 4096, false}, {12288, 1, true}}},
		{p[4000:5000], 4000, []stretch{{4000, 96, false}, {4096, 904, true}}},
		{make([]byte, 10000), 123, []stretch{{123, 10000, true}}},
	} {
		var got []stretch
		if err := splitZeroes(c.p, c.off, func(p []byte, off int64, zero bool) error {
			got = append(got, stretch{off, int64(len(p)), zero})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%d bytes at %d: %v, want %v", len(c.p), c.off, got, c.want)
		}
	}
	if err := splitZeroes(p, 0, func([]byte, int64, bool) error { return io.ErrShortWrite }); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("an error is %v", err)
	}
}

// A block device's old bytes do not show through: zeroes are written, too.
func TestDeviceSinkWritesZeroes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, noise(1, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &deviceSink{f: f}
	data := noise(2, 4096)
	if err := errors.Join(s.Zeroes(0, 2<<20), s.Data(data, 2<<20), s.Zeroes(2<<20+4096, 1<<20-4096), s.Commit(3<<20)); err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(path)
	if err != nil || !isZero(have[:2<<20]) || !bytes.Equal(have[2<<20:2<<20+4096], data) || !isZero(have[2<<20+4096:]) {
		t.Errorf("old bytes show through (%v)", err)
	}
}
