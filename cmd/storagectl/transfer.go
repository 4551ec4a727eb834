package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
)

// Sizes of import and export.
const (
	// pieceBytes is the most that one request carries. Pieces begin at multiples of it, so none crosses an extent.
	pieceBytes = 1 << 20
	// zeroPieceBytes is the most that one request to write zeroes covers.
	zeroPieceBytes = 64 << 20
	// statusPieceBytes is how much of a volume one question about holes covers.
	statusPieceBytes = 1 << 30
	// maxJobs bounds --jobs: each takes a buffer of pieceBytes.
	maxJobs = 256
)

// transferFlags are those that import and export share.
type transferFlags struct {
	jobs, connections int
	checksum, quiet   bool
}

func (f *transferFlags) register(c *cobra.Command) {
	c.Flags().IntVar(&f.jobs, "jobs", 16, "requests in flight")
	c.Flags().IntVar(&f.connections, "connections", 2, "NBD connections")
	c.Flags().BoolVar(&f.checksum, "checksum", false, "print the sha256 of all bytes, zeroes included")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "say nothing but errors and what was asked for")
}

func (f *transferFlags) check() error {
	if f.jobs < 1 || f.jobs > maxJobs {
		return fmt.Errorf("--jobs is %d; use 1 to %d", f.jobs, maxJobs)
	}
	if f.connections < 1 || f.connections > 64 {
		return fmt.Errorf("--connections is %d; use 1 to 64", f.connections)
	}
	return nil
}

// transferView is the outcome of an import or export, for programs.
type transferView struct {
	Volume    string  `json:"volume"`
	File      string  `json:"file"`
	Bytes     int64   `json:"bytes"`
	DataBytes int64   `json:"data_bytes"` // what travelled
	ZeroBytes int64   `json:"zero_bytes"` // what did not
	Seconds   float64 `json:"seconds"`
	MBPerS    float64 `json:"mb_per_s"`
	SHA256    string  `json:"sha256,omitempty"`
}

func (v *transferView) took(d time.Duration) {
	v.Seconds = d.Seconds()
	if d > 0 {
		v.MBPerS = float64(v.Bytes) / 1e6 / d.Seconds()
	}
}

// summary says in one line what was done.
func (v *transferView) summary(verb string) string {
	text := fmt.Sprintf("%s %s in %s (%.0f MB/s)", verb, formatSize(v.Bytes),
		shortDuration(time.Duration(v.Seconds*float64(time.Second))), v.MBPerS)
	if v.ZeroBytes > 0 {
		text += fmt.Sprintf("; %s of zeroes were not sent", formatSize(v.ZeroBytes))
	}
	return text
}

// digest hashes the bytes of a transfer in their order; the zero value hashes nothing.
type digest struct{ h hash.Hash }

func newDigest(on bool) digest {
	if !on {
		return digest{}
	}
	return digest{sha256.New()}
}

func (d digest) data(p []byte) {
	if d.h != nil {
		d.h.Write(p)
	}
}

func (d digest) zeroes(n int64) {
	for d.h != nil && n > 0 {
		part := min(n, int64(len(zeroBuffer)))
		d.h.Write(zeroBuffer[:part])
		n -= part
	}
}

func (d digest) String() string {
	if d.h == nil {
		return ""
	}
	return hex.EncodeToString(d.h.Sum(nil))
}

// isZero reports whether p holds zeroes only.
func isZero(p []byte) bool {
	for len(p) > len(zeroBuffer) {
		if !bytes.Equal(p[:len(zeroBuffer)], zeroBuffer) {
			return false
		}
		p = p[len(zeroBuffer):]
	}
	return bytes.Equal(p, zeroBuffer[:len(p)])
}

// splitZeroes calls each for the runs of p, which lies at off, in turn: blocks of zeroes and others. Blocks are those of
// the volume; a partial one at an end of p counts by the bytes it has.
func splitZeroes(p []byte, off int64, each func(p []byte, off int64, zero bool) error) error {
	for len(p) > 0 {
		block := func(at int) int { // the end of the block at p[at]
			return min(len(p), at+storage.BlockSize-int((off+int64(at))%storage.BlockSize))
		}
		end := block(0)
		zero := isZero(p[:end])
		for end < len(p) && isZero(p[end:block(end)]) == zero {
			end = block(end)
		}
		if err := each(p[:end], off, zero); err != nil {
			return err
		}
		p, off = p[end:], off+int64(end)
	}
	return nil
}

// unlessInterrupted runs fn and returns its result. When ctx ends it gives fn, which has seen that too, a moment to clean
// up; a read or write of a pipe cannot be taken back, so that fn may then be left to end with the process.
func unlessInterrupted(ctx context.Context, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	patience := time.NewTimer(500 * time.Millisecond)
	defer patience.Stop()
	select {
	case err := <-done:
		return err
	case <-patience.C:
		return storage.E("", storage.KindCanceled, "", ctx.Err())
	}
}

// localError is an error of the file at this end.
func localError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	kind, cause := localKind(err), fileCause(err)
	if kind == storage.KindNoSpace {
		cause = localFull{cause, path}
	}
	return storage.E(op, kind, path, cause)
}

// localFull is the cause of an error: no room at this end, whatever room the cluster has.
type localFull struct {
	error
	path string
}

// Unwrap returns what the operating system said.
func (e localFull) Unwrap() error { return e.error }

// hint is the next step.
func (e localFull) hint() string {
	if e.path == theOutput {
		return "that is where the output goes on this host, not the cluster: make room there, or write to another place"
	}
	return fmt.Sprintf("that is %s on this host, not the cluster: make room there, or write to another place", filepath.Dir(e.path))
}

// source yields what is imported, from its first byte to its last.
type source interface {
	// Head returns the beginning: headBytes, or less when there is no more. It comes before Next.
	Head() ([]byte, error)
	// Next returns the next piece: a hole of n bytes, or n bytes in buf, whose length bounds them. At the end io.EOF,
	// with no piece. It is not called again after an error.
	Next(buf []byte) (n int64, hole bool, err error)
	// SizeBytes is negative when it is not known.
	SizeBytes() int64
	Close() error
}

// streamSource reads what has no size and no holes, such as standard input.
type streamSource struct{ r *bufio.Reader }

// Next implements source.
func (s streamSource) Next(buf []byte) (int64, bool, error) {
	n, err := io.ReadFull(s.r, buf)
	if err == io.ErrUnexpectedEOF || err == io.EOF && n > 0 {
		err = nil
	}
	return int64(n), false, err
}

// SizeBytes implements source.
func (s streamSource) SizeBytes() int64 { return -1 }

// Close implements source.
func (s streamSource) Close() error { return nil }
