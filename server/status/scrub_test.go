package status

import (
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// TestJudgeScrub: what is lost is critical and named, what waits and tables that are damaged degrade, and what was mended is a warning.
// Guards: each of the four conditions; without any of them a case fails.
func TestJudgeScrub(t *testing.T) {
	p := &picture{volumes: []storage.Volume{{ID: 7, Name: "db"}}}
	for _, c := range []struct {
		scrub    storage.StoreScrub
		severity api.Health
		want     []string
	}{
		{storage.StoreScrub{LostBlocks: 5, Lost: []storage.LostBlock{{Volume: 7, Extent: 1, Block: 2}, {Volume: 8}}}, api.HealthCritical,
			[]string{"5 blocks", "node a", "volume db at byte 4202496", "volume 8 at byte 0", "3 more"}},
		{storage.StoreScrub{WaitingBlocks: 1}, api.HealthDegraded, []string{"1 block,", "node a"}},
		{storage.StoreScrub{DamagedPages: 2}, api.HealthDegraded, []string{"2 pages"}},
		{storage.StoreScrub{MendedBlocks: 2}, api.HealthOK, []string{"2 blocks", "other replicas"}},
	} {
		reasons, warnings := p.judgeScrub("a", api.Store{Scrub: c.scrub})
		all := append(reasons, warnings...)
		if len(all) != 1 || all[0].Severity != c.severity || (len(warnings) == 1) != (c.severity == api.HealthOK) || all[0].NextStep == "" {
			t.Errorf("%+v: %+v, %+v", c.scrub, reasons, warnings)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(all[0].Text, want) {
				t.Errorf("%q does not say %q", all[0].Text, want)
			}
		}
	}
	if reasons, warnings := p.judgeScrub("a", api.Store{}); len(reasons)+len(warnings) != 0 {
		t.Errorf("nothing is the matter: %v, %v", reasons, warnings)
	}
}
