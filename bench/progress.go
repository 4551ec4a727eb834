package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/term"
)

const (
	// rewrittenEvery is how often the line on a terminal is written again, toldEvery how often a line is written elsewhere.
	rewrittenEvery = time.Second
	toldEvery      = 30 * time.Second
)

// progress says how far a step is that takes long: on a terminal in one line that is written again and again and gone at the end, elsewhere in
// a line now and then. Its methods may be called concurrently, and on nil, which says nothing.
type progress struct {
	w        io.Writer
	terminal bool

	mu   sync.Mutex // guards what follows, and writes to w
	step *step      // nil: none is on
}

// step is what takes long, in parts that take about as long as one another.
type step struct {
	name  string
	began time.Time
	parts int     // 0: nobody knows how many
	done  int     // 0 <= done <= parts
	part  float64 // how much is done of the next one, from 0 to 1
	rate  string  // as fio says it; empty: not known
}

type progressKey struct{}

// withProgress has whoever gets the context tell w, a file, how far it is.
func withProgress(ctx context.Context, w *os.File) context.Context {
	return context.WithValue(ctx, progressKey{}, &progress{w: w, terminal: term.IsTerminal(int(w.Fd()))})
}

func progressOf(ctx context.Context) *progress {
	p, _ := ctx.Value(progressKey{}).(*progress)
	return p
}

// begin begins a step of so many parts, or does nothing if one is on, of which this is a part then. 0: nobody knows how long it takes. end must
// be called.
func (p *progress) begin(name string, parts int) (end func()) {
	if p == nil {
		return func() {}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step != nil {
		return func() {}
	}
	p.step = &step{name: name, began: time.Now(), parts: parts}
	over := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() { p.tell(over) })
	return func() {
		close(over)
		telling.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.step = nil
		if p.terminal {
			fmt.Fprint(p.w, "\r\x1b[K")
		}
	}
}

func (p *progress) tell(over <-chan struct{}) {
	every := toldEvery
	if p.terminal {
		every = rewrittenEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case now := <-tick.C:
			p.mu.Lock()
			if line := p.step.line(now); p.terminal {
				fmt.Fprintf(p.w, "\r%s\x1b[K", line)
			} else {
				fmt.Fprintf(p.w, "%s  %s\n", now.Format(time.TimeOnly), line)
			}
			p.mu.Unlock()
		}
	}
}

// line says how far the step is, how fast, and how long the rest takes if it goes on like this.
func (s *step) line(now time.Time) string {
	took := now.Sub(s.began)
	share := 0.0
	if s.parts > 0 {
		share = min(1, (float64(s.done)+s.part)/float64(s.parts))
	}
	line := fmt.Sprintf("%s: for %v", s.name, took.Round(time.Second))
	if share > 0 {
		line += fmt.Sprintf(", %.0f %%", 100*share)
	}
	if s.rate != "" {
		line += ", " + s.rate
	}
	if share > 0 {
		line += fmt.Sprintf(", about %v more", time.Duration(float64(took)*(1-share)/share).Round(time.Second))
	}
	return line
}

// note notes how much is done of the part that is on, and how fast it goes, in words.
func (p *progress) note(part float64, rate string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step != nil {
		p.step.part, p.step.rate = part, rate
	}
}

// ended notes that a part has ended.
func (p *progress) ended() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step != nil {
		p.step.done, p.step.part = min(p.step.done+1, p.step.parts), 0 // the next is about as fast
	}
}

// fioSays is fio's line of progress: how much is done, and how fast. fio leaves the share out at first.
var fioSays = regexp.MustCompile(`\[([0-9.]+)%\]\[([rwmt]=[^\]]*/s)\]`)

// fioProgress is told what fio says while it runs.
type fioProgress struct{ to *progress }

// Write takes whole lines, as fio writes them; what is none of progress is of no use.
func (f fioProgress) Write(b []byte) (int, error) {
	if all := fioSays.FindAllSubmatch(b, -1); len(all) > 0 {
		last := all[len(all)-1]
		if percent, err := strconv.ParseFloat(string(last[1]), 64); err == nil {
			f.to.note(percent/100, string(last[2]))
		}
	}
	return len(b), nil
}

// fio runs fio, and returns what it says at the end: its notes and errors, then JSON. name is for people.
func fio(ctx context.Context, name string, args []string) (out []byte, err error) {
	p := progressOf(ctx)
	defer p.begin(name, 1)()
	defer p.ended()
	// With its output in a file it writes its progress to standard output.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "fio", append(args, "--output-format=json", "--output=/dev/fd/3", "--eta=always")...)
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{w}, fioProgress{p}, &stderr
	err = cmd.Start()
	_ = w.Close() // fio has its own
	if err != nil {
		return nil, err
	}
	var reading errgroup.Group
	reading.Go(func() (err error) { out, err = io.ReadAll(r); return err })
	readErr := reading.Wait() // at its end, or fio's
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("fio %s: %w: %s %s", name, err, stderr.Bytes(), tail(out))
	}
	return out, readErr
}
