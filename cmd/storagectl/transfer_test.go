package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
	"github.com/storaged/storaged/nbd/nbdtest"
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

// contents returns the bytes of a volume.
func contents(v *nbdtest.Volume) []byte {
	p := make([]byte, v.Info().SizeBytes)
	v.Contents(p, 0)
	return p
}

// isZero says whether p holds zeroes only.
func isZero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

// record keeps what a volume was asked to do.
type record struct {
	mu    sync.Mutex // guards what follows
	calls []nbdtest.Call
}

func (r *record) watch(v *nbdtest.Volume) {
	v.Before(func(c nbdtest.Call) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		c.Data = nil // belongs to the caller
		r.calls = append(r.calls, c)
		return nil
	})
}

// bytes sums the lengths of the calls of that name.
func (r *record) bytes(name string) (total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		if c.Name == name {
			total += c.N
		}
	}
	return total
}

func (r *record) count(name string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		if c.Name == name {
			n++
		}
	}
	return n
}

// sparseFile writes pieces of data at offsets into a file of that size, which has holes elsewhere.
func sparseFile(t *testing.T, size int64, pieces map[int64][]byte) (path string, whole []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole = make([]byte, size)
	for off, p := range pieces {
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(whole[off:], p)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path, whole
}

// Everything that a file may be: empty, odd, sparse, full of zeroes, with an end that is not a block's.
func TestImportOfFiles(t *testing.T) {
	const volumeBytes = 8 << 20
	for name, c := range map[string]struct {
		size   int64
		pieces map[int64][]byte
		data   int64 // bytes that have to travel
	}{
		"empty":            {0, nil, 0},
		"one byte":         {1, map[int64][]byte{0: {7}}, 1},
		"one zero":         {1, map[int64][]byte{0: {0}}, 0},
		"odd end":          {1<<20 + 4097, map[int64][]byte{0: noise(1, 1<<20+4097)}, 1<<20 + 4097},
		"full":             {volumeBytes, map[int64][]byte{0: noise(2, volumeBytes)}, volumeBytes},
		"written zeroes":   {volumeBytes, map[int64][]byte{0: make([]byte, volumeBytes)}, 0},
		"all hole":         {volumeBytes, nil, 0},
		"hole first":       {volumeBytes, map[int64][]byte{6 << 20: noise(3, 64<<10)}, 64 << 10},
		"holes":            {volumeBytes, map[int64][]byte{0: noise(4, 4096), 3<<20 + 8192: noise(5, 8192), volumeBytes - 4096: noise(6, 4096)}, 16384},
		"unaligned data":   {volumeBytes - 1000, map[int64][]byte{1<<20 - 100: noise(7, 200), 5000: noise(8, 10)}, 4096 * 3},
		"zeroes in data":   {3 << 20, map[int64][]byte{0: append(append(noise(9, 1<<20), make([]byte, 1<<20)...), noise(10, 1<<20)...)}, 2 << 20},
		"every other page": {1 << 20, everyOther(1 << 20), 1 << 19},
	} {
		for _, create := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, create %v", name, create), func(t *testing.T) {
				r := newRig(t)
				path, want := sparseFile(t, c.size, c.pieces)
				args := []string{"volume", "import", path, "web", "--checksum", "-o", "json"}
				var seen record
				if create {
					args = append(args, "--create", "--size", fmt.Sprint(volumeBytes))
					seen.watch(r.volumes.volume("web", volumeBytes)) // its bytes are there before the cluster knows it
				} else {
					v := r.create("web", volumeBytes)
					v.Store(noise(99, volumeBytes), 0) // what zeroes must replace
					seen.watch(v)
				}
				var got transferView
				if err := json.Unmarshal([]byte(r.must(args...)), &got); err != nil {
					t.Fatal(err)
				}
				checkImport(t, contents(r.volumes.volume("web", volumeBytes)), want, create, got, &seen, c.data)
			})
		}
	}
}

func everyOther(size int64) map[int64][]byte {
	pieces := map[int64][]byte{}
	for off := int64(0); off < size; off += 8192 {
		pieces[off] = noise(uint64(off), 4096)
	}
	return pieces
}

func checkImport(t *testing.T, have, want []byte, create bool, got transferView, seen *record, data int64) {
	t.Helper()
	if !bytes.Equal(have[:len(want)], want) {
		t.Error("the volume does not hold what the file does")
	}
	behind := have[len(want):]
	if create && !isZero(behind) || !create && !bytes.Equal(behind, noise(99, len(have))[len(want):]) {
		t.Error("what is behind the file's end changed")
	}
	sum := sha256.Sum256(want)
	if got.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("checksum %s, want %x", got.SHA256, sum)
	}
	if n := seen.bytes("write"); n != got.DataBytes || n > data || got.Bytes != int64(len(want)) || got.ZeroBytes != got.Bytes-n {
		t.Errorf("%d bytes were written, want at most %d; the command says %+v", n, data, got)
	}
	if n := seen.bytes("zero"); create && n != 0 || !create && n != got.ZeroBytes {
		t.Errorf("%d bytes were zeroed of %d", n, got.ZeroBytes)
	}
	if seen.count("flush") == 0 {
		t.Error("nothing was flushed")
	}
}

// A stream is read to its end, in whatever pieces it comes.
func TestImportOfStreams(t *testing.T) {
	data := noise(1, 3<<20+12345)
	clear(data[1<<20 : 2<<20])
	for name, in := range map[string]io.Reader{
		"at once":  bytes.NewReader(data),
		"dripping": &dripping{r: bytes.NewReader(data), random: rand.New(rand.NewPCG(1, 1))},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			got := r.runWith(func(a *app) { a.in = in }, "volume", "import", "-", "web", "--create", "--size", "8M")
			if got.code != 0 {
				t.Fatal(got.err)
			}
			if have := contents(r.volumes.volume("web", 8<<20)); !bytes.Equal(have[:len(data)], data) || !isZero(have[len(data):]) {
				t.Error("the volume does not hold the stream")
			}
		})
	}
	t.Run("too long", func(t *testing.T) {
		r := newRig(t)
		r.create("web", 2<<20)
		got := r.runWith(func(a *app) { a.in = bytes.NewReader(data) }, "volume", "import", "-", "web")
		wantCode(t, got, storage.KindInvalid)
		if !strings.Contains(got.err, "more than the volume's 2097152 bytes") {
			t.Errorf("said %q", got.err)
		}
	})
	t.Run("too long a file", func(t *testing.T) {
		r := newRig(t)
		r.create("web", 2<<20)
		path, _ := sparseFile(t, 3<<20+1, nil)
		got := r.run("volume", "import", path, "web")
		wantCode(t, got, storage.KindInvalid)
		if !strings.Contains(got.err, "storagectl volume resize web --size 3149824") {
			t.Errorf("said %q", got.err)
		}
	})
}

// dripping gives a few bytes at a time.
type dripping struct {
	r      io.Reader
	random *rand.Rand
}

func (d *dripping) Read(p []byte) (int, error) {
	return d.r.Read(p[:min(len(p), 1+d.random.IntN(70000))])
}

// What was imported comes out again, as a sparse file and as a stream, with the checksum that import printed.
func TestExport(t *testing.T) {
	const size = 8 << 20
	r := newRig(t)
	v := r.create("web", size)
	v.Store(noise(1, 300000), 1<<20+5)
	v.Store(noise(2, 4096), size-4096)
	v.Store(make([]byte, 1<<20), 4<<20) // allocated, and zero all the same
	var seen record
	seen.watch(v)
	want := contents(v)
	sum := sha256.Sum256(want)
	path := filepath.Join(t.TempDir(), "out.img")
	var got transferView
	if err := json.Unmarshal([]byte(r.must("volume", "export", "web", path, "--checksum", "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(have, want) {
		t.Fatalf("the file is not the volume (%v)", err)
	}
	if got.SHA256 != hex.EncodeToString(sum[:]) || got.Bytes != size {
		t.Errorf("the command says %+v", got)
	}
	if n := seen.bytes("read"); n != got.DataBytes || n > 2<<20 {
		t.Errorf("%d bytes were read for %d of data", n, got.DataBytes)
	}
	if n := dataBytes(t, path); n > 1<<20 {
		t.Errorf("the file holds %d bytes of data, want the zeroes to be holes", n)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside the file there is something else: %v, %v", entries, err)
	}
	if out := r.run("volume", "export", "web", "-", "--quiet"); !bytes.Equal([]byte(out.out), want) || out.err != "" {
		t.Errorf("the stream is not the volume (%d bytes), %q", len(out.out), out.err)
	}
	if out := r.run("volume", "export", "web", "-", "-q", "--length", "1050000"); !bytes.Equal([]byte(out.out), want[:1050000]) {
		t.Errorf("a part of odd length is not the volume's (%d bytes)", len(out.out))
	}
}

// dataBytes is how much of a file is no hole, as an import of it sees that.
func dataBytes(t *testing.T, path string) (total int64) {
	t.Helper()
	src, err := transfer.OpenSource(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	for buf := make([]byte, 1<<20); ; {
		n, hole, err := src.Next(buf)
		if errors.Is(err, io.EOF) {
			return total
		} else if err != nil {
			t.Fatal(err)
		}
		if !hole {
			total += n
		}
	}
}

// A transfer that fails says so with the kind of the failure, leaves no file, and says what the volume holds now.
func TestTransferFails(t *testing.T) {
	for name, c := range map[string]struct {
		call string
		kind storage.Kind
		args []string
		want string
	}{
		"write":  {"write", storage.KindNoSpace, []string{"import", "FILE", "web"}, "import into volume web"},
		"zero":   {"zero", storage.KindIO, []string{"import", "FILE", "web"}, "import into volume web"},
		"flush":  {"flush", storage.KindIO, []string{"import", "FILE", "web"}, "import into volume web"},
		"read":   {"read", storage.KindIO, []string{"export", "web", "OUT"}, "export volume web"},
		"status": {"status", storage.KindIO, []string{"export", "web", "OUT"}, "export volume web"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			v := r.create("web", 8<<20)
			v.Store(noise(1, 8<<20), 0)
			v.Before(func(call nbdtest.Call) error {
				if call.Name == c.call {
					return storage.E("", c.kind, "", nil)
				}
				return nil
			})
			path, _ := sparseFile(t, 8<<20, map[int64][]byte{0: noise(2, 1<<20)})
			out := filepath.Join(t.TempDir(), "out.img")
			args := []string{"volume"}
			for _, a := range c.args {
				args = append(args, strings.NewReplacer("FILE", path, "OUT", out).Replace(a))
			}
			got := r.run(args...)
			wantCode(t, got, c.kind)
			if !strings.Contains(got.err, c.want) {
				t.Errorf("said %q, want %q", got.err, c.want)
			}
			if entries, err := os.ReadDir(filepath.Dir(out)); err != nil || len(entries) != 0 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}

// An import that made its volume says that the volume is incomplete; importing again without --create finishes it.
func TestImportAgainAfterFailure(t *testing.T) {
	r := newRig(t)
	var broken atomic.Bool
	broken.Store(true)
	r.volumes.volume("web", 8<<20).Before(func(c nbdtest.Call) error {
		if broken.Load() && c.Name == "write" && c.Off >= 4<<20 {
			return storage.E("", storage.KindUnavailable, "", errors.New("no majority"))
		}
		return nil
	})
	data := noise(1, 8<<20)
	clear(data[2<<20 : 3<<20])
	path, _ := sparseFile(t, 8<<20, map[int64][]byte{0: data})
	got := r.run("volume", "import", path, "web", "--create")
	if got.code == 0 || !strings.Contains(got.err, "incomplete: import again without --create") {
		t.Fatalf("exit code %d, said %q", got.code, got.err)
	}
	broken.Store(false)
	r.must("volume", "import", path, "web")
	if !bytes.Equal(contents(r.volumes.volume("web", 8<<20)), data) {
		t.Error("the volume does not hold the file")
	}
}

// Ctrl-C ends a transfer at once, whatever it waits for.
func TestInterrupt(t *testing.T) {
	stuck := func(name string) func(*rig) {
		return func(r *rig) {
			v := r.create("web", 8<<20)
			v.Store(noise(1, 8<<20), 0)
			v.Before(func(c nbdtest.Call) error {
				if c.Name == name {
					select { // until the connection ends, and no longer than the test
					case <-c.Ctx.Done():
					case <-r.t.Context().Done():
					}
					return storage.E("", storage.KindCanceled, "", nil)
				}
				return nil
			})
		}
	}
	file, _ := sparseFile(t, 8<<20, map[int64][]byte{0: noise(2, 8<<20)})
	dir := t.TempDir()
	for name, c := range map[string]struct {
		prepare func(*rig)
		args    []string
	}{
		"import, writing":        {stuck("write"), []string{"volume", "import", file, "web"}},
		"import, flushing":       {stuck("flush"), []string{"volume", "import", file, "web"}},
		"import, silent pipe":    {stuck("nothing"), []string{"volume", "import", "-", "web"}},
		"export, reading":        {stuck("read"), []string{"volume", "export", "web", filepath.Join(dir, "out")}},
		"export, asking":         {stuck("status"), []string{"volume", "export", "web", filepath.Join(dir, "out")}},
		"export, nobody reads":   {stuck("nothing"), []string{"volume", "export", "web", "-"}},
		"bench":                  {stuck("read"), []string{"bench", "web"}},
		"delete, nobody answers": {stuck("nothing"), []string{"volume", "delete", "web"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c.prepare(r)
			in, feed := io.Pipe() // nobody ever writes
			sinkR, sink := io.Pipe()
			defer feed.Close()
			defer sinkR.Close()
			var errs syncBuffer
			a := r.app(sink, &errs)
			a.in, a.inTerminal = in, true
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			time.AfterFunc(50*time.Millisecond, cancel) // in the middle of it, or before it began: it must end either way
			done := make(chan int, 1)
			go func() { done <- a.run(ctx, c.args) }()
			select {
			case code := <-done:
				if code != 130 || !strings.Contains(errs.String(), "interrupted") {
					t.Errorf("exit code %d, said %q", code, errs.String())
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it goes on")
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}

// syncBuffer is a buffer that a goroutine left behind may still write to.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A connection that breaks while standard input is silent ends the import; it does not wait for input.
func TestConnectionLostWhileInputIsSilent(t *testing.T) {
	r := newRig(t)
	v := r.create("web", 8<<20)
	v.Before(func(c nbdtest.Call) error {
		if c.Name == "write" {
			go v.Disconnect()
			<-c.Ctx.Done()
			return c.Ctx.Err()
		}
		return nil
	})
	in, feed := io.Pipe()
	defer in.Close()
	go func() {
		_, _ = feed.Write(noise(1, 1<<20)) // one piece, then silence
	}()
	got := r.runWith(func(a *app) { a.in = in }, "volume", "import", "-", "web")
	wantCode(t, got, storage.KindUnavailable)
}

// Many requests are in flight, and never more than --jobs.
func TestJobsAreBounded(t *testing.T) {
	r := newRig(t)
	v := r.create("web", 32<<20)
	v.Store(noise(1, 32<<20), 0)
	var now, most atomic.Int64
	var gate sync.WaitGroup
	gate.Add(4) // the first four wait for one another
	var first atomic.Int64
	v.Before(func(c nbdtest.Call) error {
		if c.Name != "read" && c.Name != "write" {
			return nil
		}
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if first.Add(1) <= 4 {
			gate.Done()
			gate.Wait()
		}
		now.Add(-1)
		return nil
	})
	path, _ := sparseFile(t, 32<<20, map[int64][]byte{0: noise(2, 32<<20)})
	r.must("volume", "import", path, "web", "--jobs", "4")
	if n := most.Load(); n != 4 {
		t.Errorf("import had %d requests in flight, want 4", n)
	}
	most.Store(0)
	first.Store(0)
	gate.Add(4)
	r.must("volume", "export", "web", filepath.Join(t.TempDir(), "out"), "--jobs", "4")
	if n := most.Load(); n != 4 {
		t.Errorf("export had %d requests in flight, want 4", n)
	}
}
