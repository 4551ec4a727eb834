//go:build chaos && devices

package chaos

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// fileTree is an application on a file system: it writes, appends to, cuts, replaces and removes files, syncs what it did, and knows what each
// must hold.
type fileTree struct {
	dir string
	rng *rand.Rand

	files   map[string]content
	bytes   int64
	steps   int
	checked int64
	longest time.Duration // of one step
}

// content is what a file holds: the first size bytes of the stream of a seed.
type content struct {
	seed uint64
	size int64
}

const (
	treeFiles = 150
	treeBytes = 160 << 20
	treeLeast = 1 << 10 // of one file
	treeMost  = 4 << 20
	treeChunk = 4 << 10 // of a stream: each is made from the seed and its number
)

func newFileTree(dir string, seed uint64) *fileTree {
	return &fileTree{dir: dir, rng: rand.New(rand.NewPCG(seed, 0xf17e)), files: map[string]content{}}
}

// stream fills p with what a file of a seed holds at an offset.
func stream(p []byte, seed uint64, at int64) {
	var key [32]byte
	var chunk [treeChunk]byte
	for done := 0; done < len(p); {
		no, skip := (at+int64(done))/treeChunk, (at+int64(done))%treeChunk
		binary.LittleEndian.PutUint64(key[:], seed)
		binary.LittleEndian.PutUint64(key[8:], uint64(no))
		_, _ = rand.NewChaCha8(key).Read(chunk[:])
		done += copy(p[done:], chunk[skip:])
	}
}

// run works until ctx is done.
func (f *fileTree) run(ctx context.Context) error {
	for ctx.Err() == nil {
		begun := time.Now()
		if err := f.step(); err != nil {
			return fmt.Errorf("after %d steps: %w", f.steps, err)
		}
		f.steps++
		f.longest = max(f.longest, time.Since(begun))
		pause(ctx, between(f.rng, time.Millisecond, 60*time.Millisecond))
	}
	return nil
}

func (f *fileTree) step() error {
	name := fmt.Sprintf("d%d/f%03d", f.rng.IntN(8), f.rng.IntN(treeFiles))
	has, there := f.files[name]
	switch dice := f.rng.IntN(100); {
	case f.bytes > treeBytes:
		if there {
			return f.remove(name)
		}
		return nil
	case !there || dice < 35:
		return f.replace(name)
	case dice < 50:
		return f.extend(name, has)
	case dice < 58:
		return f.cut(name, has)
	case dice < 68:
		return f.remove(name)
	default:
		return f.check(name, has)
	}
}

// size draws a size, small ones as often as large ones.
func (f *fileTree) size() int64 {
	return int64(treeLeast * math.Pow(treeMost/treeLeast, f.rng.Float64()))
}

// replace writes a new file and renames it over the old one, as careful applications do.
func (f *fileTree) replace(name string) error {
	path := filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	c := content{seed: f.rng.Uint64()}
	file, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	c.size = f.size()
	err = errors.Join(f.write(file, c, 0), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		f.bytes += c.size - f.files[name].size
		f.files[name] = c
	}
	return err
}

func (f *fileTree) write(file *os.File, c content, from int64) error {
	p := make([]byte, c.size-from)
	stream(p, c.seed, from)
	_, err := file.WriteAt(p, from)
	return err
}

func (f *fileTree) extend(name string, c content) error {
	file, err := os.OpenFile(filepath.Join(f.dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	longer := content{c.seed, min(c.size+f.size(), treeMost)}
	err = errors.Join(f.write(file, longer, min(c.size, longer.size)), file.Sync(), file.Close())
	if err == nil {
		f.bytes += longer.size - c.size
		f.files[name] = longer
	}
	return err
}

func (f *fileTree) cut(name string, c content) error {
	shorter := content{c.seed, f.rng.Int64N(c.size + 1)}
	err := os.Truncate(filepath.Join(f.dir, name), shorter.size)
	if err == nil {
		f.bytes += shorter.size - c.size
		f.files[name] = shorter
	}
	return err
}

func (f *fileTree) remove(name string) error {
	err := os.Remove(filepath.Join(f.dir, name))
	if err == nil {
		f.bytes -= f.files[name].size
		delete(f.files, name)
	}
	return err
}

// check reads a file, from the device and not from what the kernel keeps of it, as far as it is written there.
func (f *fileTree) check(name string, c content) error {
	file, err := os.Open(filepath.Join(f.dir, name))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	got, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	want := make([]byte, c.size)
	stream(want, c.seed, 0)
	if len(got) != len(want) {
		return fmt.Errorf("%s has %d bytes, want %d", name, len(got), len(want))
	}
	for at := 0; at < len(want); at += treeChunk {
		end := min(at+treeChunk, len(want))
		if !bytes.Equal(got[at:end], want[at:end]) {
			return fmt.Errorf("%s is not what was written, from byte %d of %d", name, at, len(want))
		}
	}
	f.checked += c.size
	return nil
}

// checkAll reads every file, and looks for files that should be gone.
func (f *fileTree) checkAll() error {
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		if err := f.check(name, f.files[name]); err != nil {
			return err
		}
	}
	found, err := filepath.Glob(filepath.Join(f.dir, "d*/f???"))
	if err == nil && len(found) != len(f.files) {
		err = fmt.Errorf("%d files are there, want %d", len(found), len(f.files))
	}
	return err
}
