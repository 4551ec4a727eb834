// Package history records what concurrent clients of a volume did and saw, and checks that it is linearizable:
// that every operation could have happened at one moment between its call and its return.
//
// The unit is a cell, a range of bytes that is always written as a whole; each cell is a register of its own, so a
// write over several cells is recorded once per cell. Values are unique, zero apart, which is what a cell that was
// never written or was discarded reads as. Fill and Value turn values into bytes and back and notice torn cells.
//
// Order is taken from one counter, not from a clock, so that a history means the same under virtual time. A History
// may be used concurrently; Check is called when nothing is recorded any more.
package history

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind says what an operation does to its cell.
type Kind uint8

// The kinds of operations. A discard is a write of the value 0.
const (
	Read Kind = iota + 1
	Write
)

// operation is one operation on one cell.
type operation struct {
	kind        Kind
	client      int
	cell        int64
	value       uint64 // written, or read
	call, done  int64  // done 0: the outcome is not known
	forget      bool   // it certainly had no effect
	cut         bool   // done is when it was cut off, and whether it had an effect before is not known
	callElapsed time.Duration
	doneElapsed time.Duration
}

// History is a record of operations. Make one with New.
type History struct {
	began time.Time

	mu   sync.Mutex // guards what follows
	tick int64
	ops  []*operation
	next uint64
}

// New returns an empty history.
func New() *History { return &History{began: time.Now()} }

// NextValue returns a value that was not returned before, never 0.
func (h *History) NextValue() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	return h.next
}

// Len returns how many operations were begun.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}

// Pending is an operation that was begun. Exactly one of its methods is called, once, from any goroutine. If none
// is called, the outcome is not known.
type Pending struct {
	h  *History
	op *operation
}

// BeginWrite records that a client is about to write value to a cell; 0 is a discard.
func (h *History) BeginWrite(client int, cell int64, value uint64) Pending {
	return h.begin(&operation{kind: Write, client: client, cell: cell, value: value})
}

// BeginRead records that a client is about to read a cell.
func (h *History) BeginRead(client int, cell int64) Pending {
	return h.begin(&operation{kind: Read, client: client, cell: cell})
}

func (h *History) begin(op *operation) Pending {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tick++
	op.call, op.callElapsed = h.tick, time.Since(h.began)
	h.ops = append(h.ops, op)
	return Pending{h, op}
}

// Wrote records that the write was acknowledged.
func (p Pending) Wrote() { p.finish(p.op.value) }

// Saw records what the read returned.
func (p Pending) Saw(value uint64) { p.finish(value) }

func (p Pending) finish(value uint64) {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	p.h.tick++
	p.op.value = value
	if p.op.done != 0 { // cut off: it happened before that
		p.op.cut = false
		return
	}
	p.op.done, p.op.doneElapsed = p.h.tick, time.Since(p.h.began)
}

// Failed records that the operation certainly had no effect and never will.
func (p Pending) Failed() {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	p.op.forget = true
}

// Cut records that nothing which was begun and has no outcome yet has any effect from now on, of the clients and on the
// cells that match: it happened before, or never. An answer that comes later is believed, as one about what was before.
func (h *History) Cut(match func(client int, cell int64) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tick++
	for _, op := range h.ops {
		if op.done == 0 && !op.forget && match(op.client, op.cell) {
			op.done, op.doneElapsed, op.cut = h.tick, time.Since(h.began), true
		}
	}
}

// Report is what Check found.
type Report struct {
	Operations int // that took part
	Cells      int
	Unknown    int     // writes whose outcome is not known
	Illegal    []int64 // cells whose history is not linearizable
	Undecided  []int64 // cells that could not be decided in time
	Text       string  // the history of the first illegal cell
}

// Err returns an error unless every cell was found linearizable.
func (r Report) Err() error {
	switch {
	case len(r.Illegal) > 0:
		return fmt.Errorf("history: not linearizable: cells %v; the first of them:\n%s", r.Illegal, r.Text)
	case len(r.Undecided) > 0:
		return fmt.Errorf("history: cells %v could not be decided in time", r.Undecided)
	}
	return nil
}

// Check checks every cell by itself, with at most timeout for each.
func (h *History) Check(timeout time.Duration) Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	var r Report
	cells := map[int64][]*operation{}
	for _, op := range h.ops {
		if !op.forget {
			cells[op.cell] = append(cells[op.cell], op)
		}
	}
	for _, cell := range slices.Sorted(maps.Keys(cells)) {
		ops, unknown := prepare(cells[cell])
		r.Operations += len(ops)
		r.Unknown += unknown
		r.Cells++
		switch porcupine.CheckOperationsTimeout(register, ops, timeout) {
		case porcupine.Illegal:
			if r.Illegal = append(r.Illegal, cell); len(r.Illegal) == 1 {
				r.Text = describe(cells[cell])
			}
		case porcupine.Unknown:
			r.Undecided = append(r.Undecided, cell)
		}
	}
	return r
}

// prepare turns the operations of one cell into the checker's. A write whose outcome is not known may take effect
// at any later moment, or never, which is the same as after everything else; if nobody read its value, leaving it
// out changes nothing and spares the checker much. A read without an answer says nothing.
func prepare(ops []*operation) (checked []porcupine.Operation, unknown int) {
	seen := map[uint64]bool{0: true}
	for _, op := range ops {
		if op.kind == Read && op.done != 0 && !op.cut {
			seen[op.value] = true
		}
	}
	for _, op := range ops {
		end := op.done
		if op.cut || end == 0 {
			if op.kind == Read {
				continue
			}
			if unknown++; !seen[op.value] {
				continue
			}
			if end == 0 || op.value == 0 { // many write 0, so that to see it does not say whose it is
				end = math.MaxInt64
			}
		}
		checked = append(checked, porcupine.Operation{ClientId: op.client, Input: op, Output: op.value, Call: op.call, Return: end})
	}
	return checked, unknown
}

// register is one cell: a read returns what the last write wrote, 0 before the first.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		op := input.(*operation)
		if op.kind == Write {
			return true, op.value
		}
		return state.(uint64) == output.(uint64), state
	},
}

// describe lists the operations of one cell for people, the newest at most.
func describe(ops []*operation) string {
	var b strings.Builder
	const limit = 200
	if len(ops) > limit {
		fmt.Fprintf(&b, "  (%d earlier ones left out)\n", len(ops)-limit)
		ops = ops[len(ops)-limit:]
	}
	for _, op := range ops {
		what := fmt.Sprintf("write %d", op.value)
		if op.kind == Read {
			what = fmt.Sprintf("read -> %d", op.value)
		}
		end, at := fmt.Sprint(op.done), fmt.Sprintf("%.3f-%.3f s", op.callElapsed.Seconds(), op.doneElapsed.Seconds())
		if op.cut {
			at += ", then cut off"
		}
		if op.done == 0 {
			end, at = "?", fmt.Sprintf("%.3f s, outcome not known", op.callElapsed.Seconds())
		}
		fmt.Fprintf(&b, "  [%d, %s] client %d: %s (%s)\n", op.call, end, op.client, what, at)
	}
	return b.String()
}

// Fill writes a value over a cell's bytes. The length is a multiple of 8.
func Fill(p []byte, value uint64) {
	for ; len(p) >= 8; p = p[8:] {
		binary.LittleEndian.PutUint64(p, value)
	}
}

// Value returns the value in a cell's bytes; ok is false if they hold more than one: a torn write.
func Value(p []byte) (value uint64, ok bool) {
	value = binary.LittleEndian.Uint64(p)
	for ; len(p) >= 8; p = p[8:] {
		if binary.LittleEndian.Uint64(p) != value {
			return 0, false
		}
	}
	return value, true
}
