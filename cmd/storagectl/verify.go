package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
)

const (
	// verifyPause is between tries of a step while a store verifies another volume, or a replica does not answer.
	verifyPause = 2 * time.Second
	// verifyTries is how often a replica that does not answer is asked before the volume is verified without it.
	verifyTries = 10
	// maxVerifyFindings bounds what is listed.
	maxVerifyFindings = 100
)

func newVerify(a *app) *cobra.Command {
	var rate *int64
	var quiet bool
	c := &cobra.Command{
		Use:   "verify VOLUME",
		Short: "Read all copies of a volume, mend what is damaged, and compare them",
		Long: `Has every replica of the volume read every block from its disk and compare it with its checksum, leaders and followers
alike. A block that is damaged is written anew from another replica. What the replicas hold is compared, too, also while
the volume is being written to: they must hold the same at the same place of their log.

The nodes do this anyway, for all that they hold, within --scrub-interval. This does it now, for one volume. It reads at
each store at most as fast as the scrub may (64 MiB/s) and gives way to clients as that does; --rate says otherwise.
Several verifications of one store take turns. Ctrl-C ends it, and leaves nothing behind; begin again afterwards.

It ends in one of these ways, and the exit code says which:

  sound       0  every copy is as it was written, and all are the same
  mended      0  damaged blocks were written anew, and all is sound now
  lost       23  blocks cannot be read at any replica, or tables of a replica are damaged
  differs    24  replicas hold different blocks
  unchecked  25  a replica did not answer, or blocks could not be mended or compared yet

What is listed below the result says what to do.`,
		Example:           "  storagectl verify db\n  storagectl verify db --rate 200MiB -o json",
		Args:              takes("VOLUME"),
		ValidArgsFunction: a.completes(1, a.volumeNames),
		RunE: func(c *cobra.Command, args []string) error {
			if rate != nil && *rate < api.LeastVerifyRate {
				return storage.E("verify", storage.KindInvalid, "volume "+args[0], fmt.Errorf("--rate is %s; use %s at least", formatSize(*rate), formatSize(api.LeastVerifyRate)))
			}
			step := api.VerifyStep{Name: args[0]}
			if rate != nil {
				step.RateBytes = *rate
			}
			return a.verify(c.Context(), step, quiet)
		},
	}
	c.Flags().Var(sizeFlag(&rate), "rate", "bytes that are read in a second at each store at most, together with other verifications there; 1MiB at least")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "say nothing but errors and the result")
	return c
}

// verifyView is the outcome of a verification, for programs.
type verifyView struct {
	Volume          string              `json:"volume"`
	Result          string              `json:"result"`
	Bytes           int64               `json:"bytes"` // read, in all copies
	Seconds         float64             `json:"seconds"`
	MBPerS          float64             `json:"mb_per_s"`
	ComparedExtents int64               `json:"compared_extents"`
	MendedBlocks    int64               `json:"mended_blocks"`
	LostBlocks      int64               `json:"lost_blocks"`
	WaitingBlocks   int64               `json:"waiting_blocks"`
	DamagedPages    int64               `json:"damaged_pages"`
	Findings        []api.VerifyFinding `json:"findings"`
	MoreFindings    int                 `json:"more_findings"` // that are not listed
}

// The results, and their exit codes.
const (
	resultSound     = "sound"
	resultMended    = "mended"
	resultLost      = "lost"
	resultDiffers   = "differs"
	resultUnchecked = "unchecked"
)

var verifyExits = map[string]int{resultLost: exitLost, resultDiffers: exitDiffers, resultUnchecked: exitUnchecked}

// verification is one on its way.
type verification struct {
	app      *app
	client   *client.Client
	step     api.VerifyStep
	progress *progress
	view     verifyView
	seen     map[api.VerifyFindingKind]bool
	tries    int                     // of this step
	away     map[storage.NodeID]bool // nodes that were asked often enough
}

func (a *app) verify(ctx context.Context, step api.VerifyStep, quiet bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := c.Volume(ctx, step.Name)
	if err != nil {
		return err
	}
	began := a.now()
	w := &verification{app: a, client: c, step: step, seen: map[api.VerifyFindingKind]bool{}, away: map[storage.NodeID]bool{},
		view: verifyView{Volume: step.Name, Findings: []api.VerifyFinding{}}, progress: a.newProgress("verify "+step.Name, v.OnDiskBytes, quiet)}
	err = w.run(ctx)
	w.progress.stop()
	if err != nil {
		return err
	}
	if w.view.Seconds = a.now().Sub(began).Seconds(); w.view.Seconds > 0 {
		w.view.MBPerS = float64(w.view.Bytes) / w.view.Seconds / 1e6
	}
	w.view.Result = w.result()
	if err := a.show(w.view, func(out io.Writer, _ bool) { w.view.write(out) }); err != nil {
		return err
	}
	if code := verifyExits[w.view.Result]; code != 0 {
		return exitStatus(code)
	}
	return nil
}

// run takes steps until the last.
func (w *verification) run(ctx context.Context) error {
	for {
		got, err := w.client.VerifyVolume(ctx, w.step)
		if err != nil {
			return err
		}
		w.step.ID = got.ID
		w.view.MendedBlocks += got.Mended
		unchecked := slices.ContainsFunc(got.Findings, func(f api.VerifyFinding) bool { return f.Kind == api.FoundUnchecked })
		switch {
		case got.Busy:
		case unchecked && !w.leaveOut(got.Findings):
		case unchecked:
			continue // at once, without them
		default:
			w.take(&got)
			if got.Done {
				return nil
			}
			continue
		}
		if err := w.app.sleep(ctx, verifyPause); err != nil {
			return storage.E("verify", storage.KindCanceled, "volume "+w.step.Name, err)
		}
	}
}

// leaveOut leaves the replicas that do not answer out of what follows once they were asked often enough, and those of the same nodes at once.
func (w *verification) leaveOut(findings []api.VerifyFinding) bool {
	w.tries++
	for _, f := range findings {
		if f.Kind != api.FoundUnchecked || w.tries < verifyTries && !w.away[f.Node] {
			continue
		}
		if r := (api.VerifyReplica{Group: f.Group, Node: f.Node}); len(w.step.Skip) < api.MaxVerifySkip {
			w.step.Skip = append(w.step.Skip, r)
		}
		w.away[f.Node] = true
		w.list(f)
	}
	all := !slices.ContainsFunc(findings, func(f api.VerifyFinding) bool { return f.Kind == api.FoundUnchecked && !w.away[f.Node] })
	return all && len(w.step.Skip) < api.MaxVerifySkip
}

// take adds what a step has brought, and goes on behind it.
func (w *verification) take(got *api.Verified) {
	w.tries = 0
	if w.step.Group != got.Group { // of a group that is done nobody is asked any more
		w.step.Skip = nil
	}
	w.step.Group, w.step.From = got.Group, got.From
	w.progress.add(got.Bytes)
	v := &w.view
	v.Bytes += got.Bytes
	v.LostBlocks += got.Lost
	v.WaitingBlocks += got.Waiting
	v.DamagedPages += got.DamagedPages
	v.ComparedExtents += got.Compared
	for _, f := range got.Findings {
		w.list(f)
	}
}

func (w *verification) list(f api.VerifyFinding) {
	w.seen[f.Kind] = true
	if len(w.view.Findings) < maxVerifyFindings {
		w.view.Findings = append(w.view.Findings, f)
	} else {
		w.view.MoreFindings++
	}
}

// result is the worst of what was found.
func (w *verification) result() string {
	v, seen := &w.view, w.seen
	delete(seen, api.FoundLost) // counted
	delete(seen, api.FoundTables)
	differs := seen[api.FoundDiffers]
	delete(seen, api.FoundDiffers)
	switch {
	case differs:
		return resultDiffers
	case v.LostBlocks > 0 || v.DamagedPages > 0:
		return resultLost
	case v.WaitingBlocks > 0 || len(seen) > 0:
		return resultUnchecked
	case v.MendedBlocks > 0:
		return resultMended
	}
	return resultSound
}

func (v *verifyView) write(w io.Writer) {
	var text string
	switch v.Result {
	case resultSound:
		text = "is sound"
	case resultMended:
		text = "is sound again: " + plural(int(v.MendedBlocks), "damaged block was", "damaged blocks were") + " written anew from other replicas"
	case resultLost:
		text = "is damaged: " + plural(int(v.LostBlocks), "block is lost", "blocks are lost")
		if v.DamagedPages > 0 {
			text += ", " + plural(int(v.DamagedPages), "page of tables cannot be read", "pages of tables cannot be read")
		}
	case resultDiffers:
		text = "has replicas that differ"
	case resultUnchecked:
		text = "was not checked as a whole"
	}
	fmt.Fprintf(w, "volume %s %s\n", v.Volume, text)
	rate := ""
	if v.MBPerS > 0 {
		rate = fmt.Sprintf(" (%.0f MB/s)", v.MBPerS)
	}
	fmt.Fprintf(w, "  %s in all copies were read in %s%s, and %s compared\n", formatSize(v.Bytes), shortDuration(time.Duration(v.Seconds*float64(time.Second))), rate,
		plural(int(v.ComparedExtents), "extent", "extents"))
	if v.MendedBlocks > 0 && v.Result != resultMended {
		fmt.Fprintf(w, "  %s written anew from other replicas\n", plural(int(v.MendedBlocks), "damaged block was", "damaged blocks were"))
	}
	for _, f := range v.Findings {
		who := "group " + f.Group.String()
		if f.Node != 0 {
			who += ", node " + cmp.Or(f.NodeName, f.Node.String())
		}
		fmt.Fprintf(w, "  %s: %s\n", who, f.Text)
	}
	if v.MoreFindings > 0 {
		fmt.Fprintf(w, "  and %d more\n", v.MoreFindings)
	}
}
