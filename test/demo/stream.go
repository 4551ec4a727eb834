package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/storaged/storaged/nbd/nbdclient"
)

const (
	chunkBytes = 1 << 20
	inFlight   = 8
)

// stream writes an image to a volume, a few chunks at a time.
type stream struct {
	image   image
	bar     *bar
	atThird func() // called once, when a third is on its way, while the rest goes on; write waits for it

	mu        sync.Mutex    // guards what follows, until write has returned
	longest   time.Duration // of all requests
	sentBytes int64         // zeroes apart: a new volume reads as zeroes
	took      time.Duration
}

func connect(ctx context.Context, address string) (*nbdclient.Client, error) {
	return nbdclient.Dial(ctx, nbdclient.Config{Network: "tcp", Address: address, Export: volumeName})
}

// write returns when every chunk is acknowledged: when it is durable on a majority of the nodes.
func (s *stream) write(ctx context.Context, address string) error {
	f, err := os.Open(s.image.path)
	if err != nil {
		return err
	}
	defer f.Close()
	client, err := connect(ctx, address)
	if err != nil {
		return err
	}
	from := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(inFlight)
	zeroes := make([]byte, chunkBytes)
	var beside sync.WaitGroup
	called := false
	for off := int64(0); off < s.image.sizeBytes && ctx.Err() == nil; off += chunkBytes {
		if !called && off >= s.image.sizeBytes/3 {
			called = true
			beside.Go(s.atThird)
		}
		p := make([]byte, min(chunkBytes, s.image.sizeBytes-off))
		if _, err := f.ReadAt(p, off); err != nil {
			return err
		}
		if bytes.Equal(p, zeroes[:len(p)]) {
			s.bar.add(len(p))
			continue
		}
		group.Go(func() error { return s.send(ctx, client, p, off) })
	}
	err = group.Wait()
	beside.Wait()
	s.took = time.Since(from)
	s.bar.finish()
	return errors.Join(err, client.Close())
}

func (s *stream) send(ctx context.Context, client *nbdclient.Client, p []byte, off int64) error {
	from := time.Now()
	if err := client.WriteAt(ctx, p, off); err != nil {
		return fmt.Errorf("at %d MiB: %w", off>>20, err)
	}
	s.mu.Lock()
	s.longest = max(s.longest, time.Since(from))
	s.sentBytes += int64(len(p))
	s.mu.Unlock()
	s.bar.add(len(p))
	return nil
}

// readSum reads a volume and returns its sum.
func readSum(ctx context.Context, address string, sizeBytes int64, bar *bar) (sum [sha256.Size]byte, took time.Duration, err error) {
	client, err := connect(ctx, address)
	if err != nil {
		return sum, 0, err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	from := time.Now()
	h := sha256.New()
	r := io.NewSectionReader(readerAt{ctx, client}, 0, sizeBytes)
	if _, err := io.CopyBuffer(io.MultiWriter(h, bar), struct{ io.Reader }{r}, make([]byte, 4*chunkBytes)); err != nil {
		return sum, 0, err
	}
	bar.finish()
	return [sha256.Size]byte(h.Sum(nil)), time.Since(from), nil
}

// readerAt lends a client the ordinary interface.
type readerAt struct {
	ctx    context.Context // of one stream
	client *nbdclient.Client
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.client.ReadAt(r.ctx, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// bar shows progress: a bar on a terminal, a line every tenth elsewhere. It may be used concurrently.
type bar struct {
	mu     sync.Mutex // guards what follows
	term   *progressbar.ProgressBar
	title  string
	total  int64
	done   int64
	tenths int64
}

func newBar(title string, totalBytes int64) *bar {
	b := &bar{title: title, total: totalBytes}
	if term.IsTerminal(int(os.Stdout.Fd())) {
		b.term = progressbar.NewOptions64(totalBytes, progressbar.OptionSetDescription(title), progressbar.OptionSetWriter(os.Stdout),
			progressbar.OptionShowBytes(true), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetWidth(30),
			progressbar.OptionOnCompletion(func() { fmt.Println() }))
	}
	return b
}

func (b *bar) add(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += int64(n)
	if b.term != nil {
		_ = b.term.Set64(b.done) // a terminal that does not take it shows less
	} else if tenths := b.done * 10 / max(1, b.total); tenths > b.tenths {
		b.tenths = tenths
		fmt.Printf("%s %d %%\n", b.title, tenths*10)
	}
}

// Write counts bytes, as an io.Writer.
func (b *bar) Write(p []byte) (int, error) {
	b.add(len(p))
	return len(p), nil
}

// note prints a line above the bar.
func (b *bar) note(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term != nil {
		_ = b.term.Clear() // as above
	}
	fmt.Println(line)
}

// finish leaves the line.
func (b *bar) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term != nil && !b.term.IsFinished() {
		_ = b.term.Finish() // as above
	}
}
