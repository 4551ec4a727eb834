package doors

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	refusalsTellAgain = time.Minute      // between two lines of the log about one port
	refusalsLately    = 30 * time.Second // how long one counts as having happened lately
)

// Refusals knows of a process's ports which of them closed connections for want of room: for the log, and for whoever asks how
// the process is. Its methods may be called concurrently.
type Refusals struct {
	logger *slog.Logger

	mu    sync.Mutex
	ports []*refusals // guarded by mu, as what they point to; ordered by name
}

// refusals are those of one port.
type refusals struct {
	port       string
	served     int // connections at a time
	total      int64
	last, told time.Time
	from       net.Addr // of the last one
}

// NewRefusals returns a Refusals that knows no port yet.
func NewRefusals(logger *slog.Logger) *Refusals { return &Refusals{logger: logger} }

// Port returns what is called with the address of each connection that the port closes at once. served is how many connections
// it has at a time.
func (r *Refusals) Port(name string, served int) func(net.Addr) {
	p := &refusals{port: name, served: served}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ports = append(r.ports, p)
	slices.SortFunc(r.ports, func(a, b *refusals) int { return cmp.Compare(a.port, b.port) })
	return func(from net.Addr) { r.note(p, from) }
}

func (r *Refusals) note(p *refusals, from net.Addr) {
	now := time.Now()
	r.mu.Lock()
	p.total++
	p.last, p.from = now, from
	total, tell := p.total, now.Sub(p.told) >= refusalsTellAgain
	if tell {
		p.told = now
	}
	r.mu.Unlock()
	if tell {
		r.logger.Warn("connections are closed at once: as many are open as are served at a time, in all or from one address",
			"port", p.port, "served", p.served, "closed", total, "last_from", from)
	}
}

// Lately returns a line for each port that has closed connections within the last half minute.
func (r *Refusals) Lately() (lines []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.ports {
		if !p.last.IsZero() && time.Since(p.last) < refusalsLately {
			lines = append(lines, fmt.Sprintf("connections to the %s port are closed at once (%d since the start, the last from %s): %d are served at a time, of one address less",
				p.port, p.total, p.from, p.served))
		}
	}
	return lines
}
