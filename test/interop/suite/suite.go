// Package suite runs the NBD clients that hosts really use against one export: libnbd's tools and Python binding,
// qemu's tools, nbd-client, fio's nbd engine, and go-nbd.
//
// It knows nothing of what serves the export; a server in memory and a cluster pass the same suite. A tool that is not
// installed fails its test: what was not tried does not work. What the export held before in its first WorkBytes is
// lost. Tests of one export must not run concurrently.
package suite

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gonbd "github.com/pojntfx/go-nbd/pkg/client"

	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/nbdclient"
)

// WorkBytes is how much of the export the suite writes to; the export is at least that long.
const WorkBytes = 64 << 20

// Target is a writable export.
type Target struct {
	Network string // "tcp" or "unix"
	Address string // host:port, or the socket's path
	Export  string
	// MaxCopyBytes bounds what is copied out by tools that can only copy the whole export; their tests are left
	// out of larger exports. 1 GiB if zero.
	MaxCopyBytes uint64
}

// URI is the export's NBD URI.
func (g Target) URI() string {
	if g.Network == "unix" {
		return "nbd+unix:///" + url.PathEscape(g.Export) + "?socket=" + url.QueryEscape(g.Address)
	}
	return "nbd://" + g.Address + "/" + url.PathEscape(g.Export)
}

// config is the target for the nbd package's own client.
func (g Target) config() nbdclient.Config {
	return nbdclient.Config{Network: g.Network, Address: g.Address, Export: g.Export,
		Contexts: []string{nbd.ContextAllocation, nbd.ContextDirty}}
}

// window is the first WorkBytes of the export, in the words of qemu.
func (g Target) window() string {
	server := map[string]string{"type": "unix", "path": g.Address}
	if g.Network != "unix" {
		host, port, _ := net.SplitHostPort(g.Address)
		server = map[string]string{"type": "inet", "host": host, "port": port}
	}
	b, err := json.Marshal(map[string]any{"driver": "raw", "size": WorkBytes, "offset": 0,
		"file": map[string]any{"driver": "nbd", "server": server, "export": g.Export}})
	if err != nil {
		panic(err)
	}
	return "json:" + string(b)
}

// Run runs all of it.
func Run(t *testing.T, g Target) {
	if g.MaxCopyBytes == 0 {
		g.MaxCopyBytes = 1 << 30
	}
	s := &suite{Target: g}
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Info", s.info}, {"Map", s.nbdinfoMap}, {"List", s.list}, {"Nbdcopy", s.nbdcopy},
		{"QemuImg", s.qemuImg}, {"QemuIO", s.qemuIO}, {"Fio", s.fio}, {"Libnbd", s.libnbd}, {"Mixed", s.mixed},
	} {
		t.Run(test.name, test.run)
	}
}

type suite struct{ Target }

// run runs a tool within a minute and returns what it printed; anything but a success fails the test.
func (s *suite) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := s.try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (s *suite) try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		t.Fatalf("%s is not installed; the packages are libnbd-bin, qemu-utils, nbd-client, fio, python3-libnbd", name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// clear makes the window a hole.
func (s *suite) clear(t *testing.T) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.Dial(t.Context(), s.config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if c.Info().SizeBytes < WorkBytes {
		t.Fatalf("the export has %d bytes, the suite needs %d", c.Info().SizeBytes, WorkBytes)
	}
	if err := c.WriteZeroes(t.Context(), 0, WorkBytes, false); err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *suite) info(t *testing.T) {
	c := s.clear(t)
	var got struct {
		Exports []struct {
			Name      string   `json:"export-name"`
			Size      uint64   `json:"export-size"`
			Contexts  []string `json:"contexts"`
			ReadOnly  bool     `json:"is_read_only"`
			Cache     bool     `json:"can_cache"`
			DF        bool     `json:"can_df"`
			FastZero  bool     `json:"can_fast_zero"`
			Flush     bool     `json:"can_flush"`
			FUA       bool     `json:"can_fua"`
			MultiConn bool     `json:"can_multi_conn"`
			Trim      bool     `json:"can_trim"`
			Zero      bool     `json:"can_zero"`
			Min       uint64   `json:"block_size_minimum"`
			Preferred uint64   `json:"block_size_preferred"`
			Max       uint64   `json:"block_size_maximum"`
		} `json:"exports"`
		Structured bool `json:"structured"`
	}
	out := s.run(t, "nbdinfo", "--json", "--no-content", s.URI())
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Exports) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	e := got.Exports[0]
	if e.Name != s.Export || e.Size != c.Info().SizeBytes || e.ReadOnly || !e.Cache || !e.DF || !e.FastZero ||
		!e.Flush || !e.FUA || !e.MultiConn || !e.Trim || !e.Zero || !got.Structured {
		t.Errorf("nbdinfo: %s", out)
	}
	if e.Min != 1 || e.Preferred != 4096 || e.Max != 32<<20 {
		t.Errorf("block sizes %d, %d, %d", e.Min, e.Preferred, e.Max)
	}
	if !slices.Contains(e.Contexts, nbd.ContextAllocation) {
		t.Errorf("contexts %q", e.Contexts)
	}
	if size := strings.TrimSpace(s.run(t, "nbdinfo", "--size", s.URI())); size != fmt.Sprint(e.Size) {
		t.Errorf("nbdinfo --size: %s", size)
	}
}

// mapEntry is a run of nbdinfo --map and of qemu-img map.
type mapEntry struct {
	Offset, Length uint64
	Type           int  // of nbdinfo
	Data, Zero     bool // of qemu-img
}

func (s *suite) nbdinfoMap(t *testing.T) {
	c := s.clear(t)
	// Data around the borders of extents of 4 MiB, a hole punched by a trim, zeroes without a hole.
	for _, w := range []struct{ off, n int64 }{{0, 8192}, {4<<20 - 4096, 8192}, {8 << 20, 4 << 20}} {
		if err := c.WriteAt(t.Context(), bytes.Repeat([]byte{7}, int(w.n)), w.off); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Trim(t.Context(), 9<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	var entries []mapEntry
	out := s.run(t, "nbdinfo", "--map", "--json", s.URI())
	if err := json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data := []span{{0, 8192}, {4<<20 - 4096, 4<<20 + 4096}, {8 << 20, 9 << 20}, {10 << 20, 12 << 20}}
	checkMap(t, entries, data, func(e mapEntry) bool { return e.Type == 0 }, c.Info().SizeBytes)
	if slices.Contains(c.Info().Contexts, nbd.ContextDirty) {
		s.run(t, "nbdinfo", "--map="+nbd.ContextDirty, s.URI())
	}
}

type span struct{ start, end uint64 }

// checkMap holds a map of the whole export against where data are in the window.
func checkMap(t *testing.T, entries []mapEntry, data []span, isData func(mapEntry) bool, size uint64) {
	t.Helper()
	var at uint64
	var got []span
	for _, e := range entries {
		if e.Offset != at || e.Length == 0 {
			t.Fatalf("the map has a gap at %d: %+v", at, e)
		}
		at += e.Length
		if !isData(e) || e.Offset >= WorkBytes {
			continue
		}
		if n := len(got); n > 0 && got[n-1].end == e.Offset {
			got[n-1].end = at
		} else {
			got = append(got, span{e.Offset, at})
		}
	}
	if at != size {
		t.Errorf("the map ends at %d of %d", at, size)
	}
	if !slices.Equal(got, data) {
		t.Errorf("data in %v, want %v", got, data)
	}
}

func (s *suite) list(t *testing.T) {
	server := strings.TrimSuffix(s.URI(), "/"+url.PathEscape(s.Export))
	if s.Network == "unix" {
		server = strings.Replace(s.URI(), url.PathEscape(s.Export), "", 1)
	}
	if out := s.run(t, "nbdinfo", "--list", "--json", "--no-content", server); !strings.Contains(out, `"`+s.Export+`"`) {
		t.Errorf("nbdinfo --list does not name %q: %s", s.Export, out)
	}
	if out := s.run(t, "qemu-nbd", append([]string{"--list"}, s.qemuNBD()...)...); !strings.Contains(out, "'"+s.Export+"'") {
		t.Errorf("qemu-nbd --list does not name %q: %s", s.Export, out)
	}
	args := []string{"-l", "-unix", s.Address}
	if s.Network != "unix" {
		host, port, _ := net.SplitHostPort(s.Address)
		args = []string{"-l", host, port}
	}
	if out := s.run(t, "nbd-client", args...); !slices.Contains(strings.Fields(out), s.Export) {
		t.Errorf("nbd-client -l does not name %q: %s", s.Export, out)
	}
	nc, err := net.Dial(s.Network, s.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	// go-nbd looks at the first reply only.
	if names, err := gonbd.List(nc); err != nil || len(names) != 1 {
		t.Errorf("go-nbd lists %q, %v", names, err)
	}
	names, err := nbdclient.List(t.Context(), s.config())
	if err != nil || !slices.Contains(names, s.Export) {
		t.Errorf("our client lists %q, %v", names, err)
	}
}

func (s *suite) qemuNBD() []string {
	if s.Network == "unix" {
		return []string{"-k", s.Address}
	}
	host, port, _ := net.SplitHostPort(s.Address)
	return []string{"-b", host, "-p", port}
}

// image writes a file of WorkBytes with data and holes, and returns its path and contents.
func (s *suite) image(t *testing.T, seed uint64) (string, []byte) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, seed))
	b := make([]byte, WorkBytes)
	for at := 0; at < len(b); {
		n := min(len(b)-at, 1+random.IntN(1<<20))
		if random.IntN(2) == 0 {
			n = min(len(b)-at, (n+4095)&^4095)
		}
		if random.IntN(3) > 0 {
			for i := at; i < at+n; i++ {
				b[i] = byte(random.Uint32())
			}
		}
		at += n
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, b
}

// wantWindow compares the export with what it should hold, read by our own client.
func (s *suite) wantWindow(t *testing.T, want []byte) {
	t.Helper()
	c, err := nbdclient.Dial(t.Context(), s.config())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	got := make([]byte, len(want))
	if err := c.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, got, want)
}

func wantEqual(t *testing.T, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
		}
	}
}

func (s *suite) nbdcopy(t *testing.T) {
	c := s.clear(t)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"one connection", []string{"--connections=1", "--requests=1", "--synchronous"}},
		{"many connections", []string{"--connections=4", "--threads=4", "--requests=64", "--request-size=65536"}},
		{"large requests", []string{"--connections=2", "--requests=8", "--request-size=33554432"}},
		{"flush and allocated", []string{"--connections=4", "--flush", "--allocated"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path, want := s.image(t, uint64(len(tc.name)))
			s.run(t, "nbdcopy", append(tc.args, path, s.URI())...)
			s.wantWindow(t, want)
			if c.Info().SizeBytes > s.MaxCopyBytes {
				return
			}
			back := filepath.Join(t.TempDir(), "back")
			s.run(t, "nbdcopy", append(tc.args, s.URI(), back)...)
			f, err := os.Open(back)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			got := make([]byte, WorkBytes)
			if _, err := f.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			wantEqual(t, got, want)
		})
	}
}

func (s *suite) qemuImg(t *testing.T) {
	s.clear(t)
	path, want := s.image(t, 77)
	s.run(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", path,
		s.window()) // -W: out of order
	s.wantWindow(t, want)
	s.run(t, "qemu-img", "compare", "-f", "raw", path, s.window())
	if out, err := s.try(t, "qemu-img", "compare", "-f", "raw", s.otherImage(t, want), s.window()); err == nil {
		t.Errorf("qemu-img finds other contents identical: %s", out)
	}
	copied := filepath.Join(t.TempDir(), "copy.qcow2")
	s.run(t, "qemu-img", "convert", "-O", "qcow2", s.window(), copied)
	s.run(t, "qemu-img", "compare", "-F", "raw", copied, s.window())

	c := s.clear(t)
	data := []span{{1 << 20, 1<<20 + 4096}, {4<<20 - 8192, 4<<20 + 8192}}
	for _, d := range data {
		if err := c.WriteAt(t.Context(), bytes.Repeat([]byte{1}, int(d.end-d.start)), int64(d.start)); err != nil {
			t.Fatal(err)
		}
	}
	var entries []struct {
		Start, Length uint64
		Data, Zero    bool
	}
	out := s.run(t, "qemu-img", "map", "--output=json", s.window())
	if err := json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var m []mapEntry
	for _, e := range entries {
		m = append(m, mapEntry{Offset: e.Start, Length: e.Length, Data: e.Data, Zero: e.Zero})
	}
	checkMap(t, m, data, func(e mapEntry) bool { return e.Data }, WorkBytes)
}

// otherImage is want with one byte changed.
func (s *suite) otherImage(t *testing.T, want []byte) string {
	t.Helper()
	other := slices.Clone(want)
	other[len(other)/2+1] ^= 1
	path := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(path, other, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *suite) qemuIO(t *testing.T) {
	s.clear(t)
	// qemu-io prints "Pattern verification failed" and still succeeds.
	commands := []string{
		"write -P 0x11 0 65536", "read -P 0x11 0 65536",
		// Unaligned: within a block, across blocks, across extents of 4 MiB.
		"write -P 0x22 1 1", "read -P 0x11 0 1", "read -P 0x22 1 1", "read -P 0x11 2 4094",
		"write -P 0x33 4095 2", "read -P 0x33 4095 2", "read -P 0x11 4097 4095",
		"write -P 0x44 4194303 2", "read -P 0x44 4194303 2", "read -P 0 4194305 511",
		"write -P 0x55 1000001 3000003", "read -P 0x55 1000001 3000003", "read -P 0 4000004 100000",
		// Zeroes, with and without a hole.
		"write -z 8192 8192", "read -P 0 8192 8192", "write -z -u 16384 8192", "read -P 0 16384 8192",
		"write -z 24577 3000", "read -P 0 24577 3000", "read -P 0x11 24576 1", "read -P 0x11 27577 100",
		"write -z -u 30001 9000", "read -P 0 30001 9000", "read -P 0x11 30000 1", "read -P 0x11 39001 1000",
		"write -f -P 0x66 40000 1000", "read -P 0x66 40000 1000",
		"write -z -f 40000 500", "read -P 0 40000 500", "read -P 0x66 40500 500",
		"discard 1003520 1003520", "discard 50000 2000", "discard 0 33554432", "flush",
		"read -P 0 0 4194304",
		"aio_write -P 0x77 0 4194304", "aio_write -P 0x78 4194304 4194304", "aio_write -P 0x79 8388608 4194304",
		"aio_flush", "aio_read -P 0x78 4194304 4194304", "aio_flush", "flush", "read -P 0x79 8388608 4194304",
		"writev -P 0x7a 100 5000 300", "read -P 0x7a 100 5300",
	}
	for _, cache := range []string{"none", "writethrough"} {
		args := []string{"-f", "raw", "-t", cache}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out := s.run(t, "qemu-io", append(args, s.URI())...)
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("qemu-io -t %s: %s", cache, out)
		}
		s.clear(t)
	}
}

func (s *suite) fio(t *testing.T) {
	s.clear(t)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"random writes", []string{"--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16M"}},
		{"any size", []string{"--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned", "--iodepth=16", "--size=32M"}},
		{"sequential", []string{"--rw=write", "--bs=1M", "--iodepth=8", "--size=64M"}},
		{"mixed with flushes", []string{"--rw=randrw", "--bs=8k", "--iodepth=8", "--size=16M", "--fsync=16"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := append([]string{"--name=interop", "--ioengine=nbd", "--uri=" + s.URI(), "--verify=crc32c",
				"--do_verify=1", "--verify_fatal=1", "--randrepeat=1", "--allrandrepeat=1", "--output-format=terse"},
				tc.args...)
			s.run(t, "fio", args...)
		})
	}
}

//go:embed libnbd.py
var libnbdScript string

func (s *suite) libnbd(t *testing.T) {
	s.clear(t)
	// The distribution's Python: others do not find its libnbd.
	t.Log(s.run(t, "/usr/bin/python3", "-c", libnbdScript, s.URI(), s.Export))
}

// mixed lets several clients see each other's writes: what one wrote and flushed, all read.
func (s *suite) mixed(t *testing.T) {
	c := s.clear(t)
	p := bytes.Repeat([]byte{0x5a}, 12345)
	if err := errors.Join(c.WriteAt(t.Context(), p, 777), c.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	out := s.run(t, "qemu-io", "-f", "raw", "-c", "read -P 0x5a 777 12345", "-c", "write -P 0xa5 10000 10000",
		"-c", "flush", s.URI())
	if strings.Contains(out, "failed") {
		t.Error(out)
	}
	got := make([]byte, 10000)
	if err := c.ReadAt(t.Context(), got, 10000); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, got, bytes.Repeat([]byte{0xa5}, 10000))
}
