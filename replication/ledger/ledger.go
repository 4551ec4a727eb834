package ledger

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	storage "github.com/storaged/storaged"
)

// Ledger is the accounts of a node.
type Ledger struct {
	silentAfter time.Duration
	begun       time.Time

	mu       sync.Mutex // guards accounts
	accounts map[storage.StoreID]*account
}

// account is what is known of one store. It stays as long as the node runs: there are as many as stores in the cluster.
type account struct {
	told  atomic.Int64 // as in answers: the complement says that waiting makes no more room
	heard atomic.Int64 // when that was, since Ledger.begun, and never 0; 0: never
	out   atomic.Int64 // bytes on their way, of all groups that this node leads
}

// New returns a ledger without accounts. A store that was not heard of for longer than silentAfter refuses nothing: the group
// goes on without its replica.
func New(silentAfter time.Duration) *Ledger {
	return &Ledger{silentAfter: silentAfter, begun: time.Now(), accounts: map[storage.StoreID]*account{}}
}

func (l *Ledger) account(store storage.StoreID) *account {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accounts[store]
	if a == nil {
		a = &account{}
		l.accounts[store] = a
	}
	return a
}

func (l *Ledger) now() int64 { return int64(time.Since(l.begun)) + 1 }

// Outstanding returns how many bytes are on their way to a store from groups that this node leads.
func (l *Ledger) Outstanding(store storage.StoreID) int64 { return l.account(store).out.Load() }

// note is what an answer of a store has said.
func (a *account) note(told, now int64) {
	a.told.Store(told)
	a.heard.Store(now)
}

// Displaced is what a store tells in place of bytes when its disk is full of files that are not its own. Its complement is no number of
// bytes. Leaders of earlier releases take it for a disk that gets no more room by waiting.
const Displaced = math.MinInt64

// decode returns what may be taken, and whether waiting makes no more.
func decode(told int64) (bytes int64, exhausted bool) { return max(told, ^told), told < 0 }
