package extent

// turn is a lock that is held across waits for room on the disk. In virtual time (testing/synctest) whoever waits for it is idle, as is
// who waits for room; at a sync.Mutex the clock would stand still, and there would never be any. It is made by newTurn.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// Lock waits until nobody holds the turn, and takes it.
func (t turn) Lock() { t <- struct{}{} }

// Unlock gives the turn back. Nobody but its holder may call it.
func (t turn) Unlock() { <-t }
