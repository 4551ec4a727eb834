//go:build linux

package attach

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdtest"
)

// What the kernel zeroes, by whichever way, is a hole afterwards. Line: deviceExport.
func TestZeroesAreHoles(t *testing.T) {
	for name, zero := range map[string]func(*testing.T, Request){
		"fuse": func(t *testing.T, r Request) {
			export, err := openDevice(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			s := newFuseServer(&FUSE{budget: newFUSEBudget(1 << 20)}, nil, export, r)
			body := make([]byte, fallocInBytes)
			binary.NativeEndian.PutUint64(body[16:], 1<<20)
			binary.NativeEndian.PutUint32(body[24:], unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
			if err := s.fallocate(body); err != nil {
				t.Fatal(err)
			}
		},
		"nbd": func(t *testing.T, r Request) {
			driver, err := NewNBD(Config{Dir: t.TempDir(), Helper: []string{"false"}})
			if err != nil {
				t.Fatal(err)
			}
			kernel := newFakeKernel(t)
			driver.kernel, driver.sysfs = kernel, kernel.sysfs
			dev, err := driver.connect(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Stop(context.WithoutCancel(t.Context()))
			kernel.mu.Lock()
			c := kernel.sockets[0]
			kernel.mu.Unlock()
			sendZeroes(t, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			backend := nbdtest.NewBackend()
			backend.Add("db", 1<<20)
			r := Request{Name: "db", Open: func(ctx context.Context) (nbd.Export, error) { return backend.Open(ctx, "db", nbd.Peer{}) }}
			v, err := r.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := v.WriteAt(t.Context(), make([]byte, 8192), 4096); err != nil {
				t.Fatal(err)
			}
			zero(t, r)
			extents, err := v.Status(t.Context(), 0, 1<<20, nbd.ContextAllocation)
			if err != nil || len(extents) != 1 || extents[0].Flags != nbd.FlagHole|nbd.FlagZero {
				t.Errorf("extents %+v, %v; want one hole", extents, err)
			}
		})
	}
}

// sendZeroes sends a WRITE_ZEROES of 1 MiB with NO_HOLE, as the kernel does for BLKZEROOUT.
func sendZeroes(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	req := binary.BigEndian.AppendUint32(nil, 0x25609513)
	req = binary.BigEndian.AppendUint16(req, 2) // NO_HOLE
	req = binary.BigEndian.AppendUint16(req, 6) // WRITE_ZEROES
	req = binary.BigEndian.AppendUint64(req, 77)
	req = binary.BigEndian.AppendUint64(req, 0)
	req = binary.BigEndian.AppendUint32(req, 1<<20)
	if _, err := c.Write(req); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 16)
	if _, err := io.ReadFull(c, answer); err != nil || binary.BigEndian.Uint32(answer[4:]) != 0 {
		t.Fatalf("answer %x, %v", answer, err)
	}
}
