package status

import (
	"context"
	"errors"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/server/catalog"
	"github.com/storaged/storaged/server/placement"
)

// PlanNode answers api.Cluster: what an action would do, decided on the catalog and the reports of now as the catalog's leader decides.
func (v *View) PlanNode(ctx context.Context, id storage.NodeID, action api.NodeAction) (api.NodePlan, error) {
	const op = "plan"
	reports, err := v.Catalog.Reports(ctx)
	if err != nil {
		return api.NodePlan{}, storage.E(op, storage.KindUnavailable, "node "+id.String(), err)
	}
	var plan api.NodePlan
	var known bool
	err = v.Catalog.Read(ctx, func(s *catalog.State) {
		var n storage.Node
		if n, known = s.Node(id); known && n.State != storage.NodeRemoved {
			plan = planNode(s, placement.NewView(s, fresh(reports), time.Now()), n, action)
		}
	})
	switch {
	case err != nil:
		return api.NodePlan{}, catalog.NotKnown(op, "node "+id.String(), err)
	case !known || plan.Node == 0:
		return api.NodePlan{}, storage.E(op, storage.KindNotFound, "node "+id.String(), errors.New("there is no such node, or it was removed"))
	}
	return plan, nil
}

func planNode(s *catalog.State, v placement.View, n storage.Node, action api.NodeAction) api.NodePlan {
	plan := api.NodePlan{Action: action, Node: n.ID, Name: n.Name}
	var refused error
	switch action {
	case api.ActDrain:
		refused = s.IntentAllowed(string(action), &n, catalog.SetNodeIntent{Node: n.ID, Intent: storage.IntentDrain})
	case api.ActMaintenance:
		refused = s.IntentAllowed(string(action), &n, catalog.SetNodeIntent{Node: n.ID, Intent: storage.IntentMaintenance})
	case api.ActRemove:
		refused = s.RemovalAllowed(string(action), &n)
	}
	if refused != nil {
		plan.Refused = storage.Cause(refused).Error()
	}
	if action == api.ActDrain || action == api.ActRemove {
		for _, m := range placement.Moves(v, n.ID) {
			to, _ := s.Node(m.To)
			plan.Moves = append(plan.Moves, api.NodeMove{Group: m.Group, Bytes: m.Bytes, To: m.To, ToName: to.Name, Why: m.Why})
		}
	}
	if action != api.ActDrain { // who drains stays until others have taken over
		plan.Stopped, plan.Thinner = placement.Without(v, n.ID)
	}
	for _, a := range s.AttachmentsBy(n.ID) {
		if vol, ok := s.Volume(a.Volume); ok {
			plan.Volumes = append(plan.Volumes, vol.Name)
		}
	}
	return plan
}
