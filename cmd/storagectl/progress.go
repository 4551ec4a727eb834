package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progressEvery is how often a progress that no person watches is reported.
const progressEvery = 5 * time.Second

// progress reports how far a transfer is: as a bar on a terminal, as a line now and then elsewhere. Its methods may be
// called concurrently; stop ends its goroutine.
type progress struct {
	app   *app
	label string
	total int64 // negative: not known
	began time.Time

	mu   sync.Mutex // guards what follows, and the error stream while a report is written
	done int64
	bar  *progressbar.ProgressBar // nil: lines, or quiet

	quit   chan struct{} // closed by stop; nil without a goroutine
	ticker sync.WaitGroup
}

// newProgress begins to report; quiet: nothing.
func (a *app) newProgress(label string, total int64, quiet bool) *progress {
	p := &progress{app: a, label: label, total: total, began: a.now()}
	switch {
	case quiet:
	case a.errTerminal:
		p.bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(a.err), progressbar.OptionSetDescription(label),
			progressbar.OptionShowBytes(true), progressbar.OptionUseIECUnits(true), progressbar.OptionShowTotalBytes(true),
			progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetWidth(24), progressbar.OptionClearOnFinish(), progressbar.OptionSetRenderBlankState(true))
	default:
		p.quit = make(chan struct{})
		p.ticker.Go(p.report)
	}
	return p
}

// add says that n more bytes are done.
func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	if p.bar != nil {
		_ = p.bar.Add64(n) // a terminal that went away is no reason to stop
	}
}

// report writes a line now and then until stop.
func (p *progress) report() {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-tick.C:
			p.mu.Lock()
			fmt.Fprintln(p.app.err, p.lineLocked())
			p.mu.Unlock()
		}
	}
}

// lineLocked says how far it is, how fast, and when it will be done.
func (p *progress) lineLocked() string {
	took := p.app.now().Sub(p.began).Seconds()
	rate := 0.0
	if took > 0 {
		rate = float64(p.done) / took
	}
	speed := formatSize(int64(rate)) + "/s"
	if p.total <= 0 {
		return fmt.Sprintf("%s: %s, %s", p.label, formatSize(p.done), speed)
	}
	eta := "unknown"
	if rate > 0 {
		eta = shortDuration(time.Duration(float64(p.total-p.done) / rate * float64(time.Second)).Round(time.Second))
	}
	return fmt.Sprintf("%s: %s of %s (%s), %s, ETA %s", p.label, formatSize(p.done), formatSize(p.total), percent(p.done, p.total), speed, eta)
}

// stop ends the reports.
func (p *progress) stop() {
	if p.quit != nil {
		close(p.quit)
		p.ticker.Wait()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}
