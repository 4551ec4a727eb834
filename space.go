package storage

// CompactionState says what the compaction of a store does now.
type CompactionState string

// The states of compaction.
const (
	// CompactionOff: the node runs without it, and segments are used again when all in them is dead.
	CompactionOff CompactionState = "off"
	// CompactionIdle: there is room, and nothing worth doing.
	CompactionIdle CompactionState = "idle"
	// CompactionRunning: blocks are moved, or were and wait for a checkpoint.
	CompactionRunning CompactionState = "running"
	// CompactionBraked: the same, at less than half of the pace, because clients wait longer for the disk meanwhile.
	CompactionBraked CompactionState = "braked"
	// CompactionBehind: the same, without regard to clients, because there is so little room that they would have to wait.
	CompactionBehind CompactionState = "behind"
	// CompactionNothingToWin: room is short, and no segment is left that could be emptied to make some.
	CompactionNothingToWin CompactionState = "nothing to win"
	// CompactionNoRoom: room is so short that there is none for copies.
	CompactionNoRoom CompactionState = "no room"
)

// Works reports whether room is being made.
func (s CompactionState) Works() bool {
	return s == CompactionRunning || s == CompactionBraked || s == CompactionBehind
}

// StoreSpace says what takes the room of a store. Sizes are bytes. Log, tables, other and unused together are the capacity, but for
// what the file system refuses.
type StoreSpace struct {
	// LogBytes is what segments take that hold records.
	LogBytes int64 `json:"log_bytes,omitempty"`
	// LiveBytes are the blocks in them that volumes refer to, of this copy.
	LiveBytes int64 `json:"live_bytes,omitempty"`
	// GarbageBytes is what compaction can win back: what segments take beyond the live blocks, packed with headers and padding.
	GarbageBytes int64 `json:"garbage_bytes,omitempty"`
	// TableBytes is what the tables take, which say where blocks lie.
	TableBytes int64 `json:"table_bytes,omitempty"`
	// OtherBytes is what others have of the store's room: other files, the node's catalog, what the file system keeps for itself.
	OtherBytes int64 `json:"other_bytes,omitempty"`
	// UnusedBytes is what nothing takes, the reserve included.
	UnusedBytes int64 `json:"unused_bytes,omitempty"`
	// ReserveBytes: with less unused, writes that allocate wait for compaction, or are refused.
	ReserveBytes int64 `json:"reserve_bytes,omitempty"`
	// Fill is which part is taken of the room that may be: of what may live, with compaction; of all but the reserve, without. From 1
	// on new data is refused. It is above 1 when the room has become less.
	Fill float64 `json:"fill,omitempty"`
	// NoRoom: the file system gives no room, whatever it says of itself, and what is written waits.
	NoRoom bool `json:"no_room,omitempty"`
	// Compaction is empty in what nodes say that do not know of all this.
	Compaction CompactionState `json:"compaction,omitempty"`
}

// Known reports whether the fields say anything: older nodes do not tell.
func (s StoreSpace) Known() bool { return s.Compaction != "" }

// Waits reports whether a write of n bytes that allocates has to wait until compaction has made room.
func (s StoreSpace) Waits(n int64) bool { return s.Known() && s.UnusedBytes-n < s.ReserveBytes }
