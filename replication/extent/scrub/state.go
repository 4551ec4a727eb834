package scrub

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/segment"
)

// maxListed bounds each list of a state.
const maxListed = 1024

// state is where a pass is; docs/format/extent.md has its JSON.
type state struct {
	// Begun is when the pass began; zero: none did yet. It reads the sealed segments from Next on that lie before End, then, with
	// Tables, the pages from From on; Done: it has ended.
	Begun  time.Time         `json:"begun"`
	Next   segment.SegmentNo `json:"next"`
	End    segment.SegmentNo `json:"end"`
	Tables bool              `json:"tables,omitempty"`
	From   []byte            `json:"from,omitempty"`
	Done   bool              `json:"done,omitempty"`
	// Doubtful are segments whose records did not lead to all blocks that live there.
	Doubtful []segment.SegmentNo `json:"doubtful,omitempty"`
	// Suspects are segments with blocks that are not mended.
	Suspects []segment.SegmentNo `json:"suspects,omitempty"`
	// Bytes were read by this pass; DamagedPages could not be decoded.
	Bytes        int64 `json:"bytes"`
	DamagedPages int   `json:"damaged_pages,omitempty"`
	// LastEnded is when a pass has ended; zero: none has yet. LastBytes and LastDamagedPages are that pass's.
	LastEnded        time.Time `json:"last_ended"`
	LastBytes        int64     `json:"last_bytes,omitempty"`
	LastDamagedPages int       `json:"last_damaged_pages,omitempty"`
}

func (s *state) encode() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // times beyond the year 9999
	}
	return b
}

// decodeState reads a state. Whatever is wrong with it costs no more than a pass that begins anew.
func decodeState(b []byte) (s state, err error) {
	if err = json.Unmarshal(b, &s); err == nil && (len(s.Doubtful) > maxListed || len(s.Suspects) > maxListed || s.Next > s.End+1) {
		err = errors.New("its lists, or its numbers, cannot be")
	}
	if err != nil {
		return state{}, storage.E("read", storage.KindCorrupt, "the scrub's state", err)
	}
	return s, nil
}

// begin makes it a pass over the segments that are sealed when they are listed next.
func (s *state) begin(now time.Time) {
	*s = state{Begun: now, LastEnded: s.LastEnded, LastBytes: s.LastBytes, LastDamagedPages: s.LastDamagedPages}
}

// end notes that the pass has ended.
func (s *state) end(now time.Time) {
	s.Done, s.Tables, s.From, s.Doubtful = true, false, nil, nil
	s.LastEnded, s.LastBytes, s.LastDamagedPages = now, s.Bytes, s.DamagedPages
}

// doubt notes a segment whose blocks are looked for in the tables.
func (s *state) doubt(no segment.SegmentNo) {
	if len(s.Doubtful) < maxListed && !slices.Contains(s.Doubtful, no) {
		s.Doubtful = append(s.Doubtful, no)
	}
}
