package main

import (
	"fmt"
	"io"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// scrubView is storage.StoreScrub as programs get it.
type scrubView struct {
	LastPassAt      *time.Time `json:"last_pass_at,omitempty"`
	BegunAt         *time.Time `json:"begun_at,omitempty"`
	Part            float64    `json:"part"`
	MendedBlocks    int64      `json:"mended_blocks"`
	WaitingBlocks   int64      `json:"waiting_blocks"`
	LostBlocks      int64      `json:"lost_blocks"`
	DamagedPages    int64      `json:"damaged_pages"`
	DamagedSegments int64      `json:"damaged_segments"`
}

func viewScrub(s storage.StoreScrub) scrubView {
	return scrubView{LastPassAt: viewTime(s.LastPass), BegunAt: viewTime(s.Begun), Part: s.Part, MendedBlocks: s.MendedBlocks, WaitingBlocks: s.WaitingBlocks,
		LostBlocks: s.LostBlocks, DamagedPages: s.DamagedPages, DamagedSegments: s.DamagedSegments}
}

// writeScrub says of each store how its scrub finds the disk.
func (a *app) writeScrub(w io.Writer, stores []api.Store) {
	t := newTable("SCRUB OF", "LAST PASS", "THIS PASS", "MENDED", "WAITING", "LOST", "DAMAGED SEGMENTS", "DAMAGED PAGES")
	n := 0
	for _, s := range stores {
		r := s.Scrub
		if !r.Known() {
			continue
		}
		n++
		t.row(s.ID.String(), a.ago(r.LastPass), dashUnless(!r.Begun.IsZero(), fmt.Sprintf("%.0f %%", 100*r.Part)), fmt.Sprint(r.MendedBlocks), fmt.Sprint(r.WaitingBlocks),
			fmt.Sprint(r.LostBlocks), fmt.Sprint(r.DamagedSegments), fmt.Sprint(r.DamagedPages))
	}
	if n > 0 {
		fmt.Fprintln(w)
		t.write(w, "")
	}
}
