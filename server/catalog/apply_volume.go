package catalog

import (
	"cmp"
	"errors"
	"maps"
	"slices"

	storage "github.com/storaged/storaged"
)

func (c CreateVolume) apply(s *State, res *Result) error {
	const op = "create"
	subject := "volume " + c.Name
	if id, ok := s.volumeByRequest[c.RequestID]; ok && c.RequestID != "" {
		v := s.volumes[id].Clone()
		if v.Name != c.Name || v.SizeBytes != c.SizeBytes || v.State != storage.VolumeReady || v.Limits != c.Limits || !maps.Equal(v.Labels, c.Labels) {
			return refuse(op, storage.KindConflict, subject,
				"request id %q made volume %s of %d bytes (%s), or it was changed since; use a new request id for another volume", c.RequestID, v.Name,
				v.SizeBytes, v.State)
		}
		res.Volume = &v
		return nil
	}
	if old, ok := s.VolumeByName(c.Name); ok {
		return refuse(op, storage.KindExists, subject,
			"a volume of this name exists with %d bytes; choose another name, or delete it first", old.SizeBytes)
	}
	if len(s.volumes) >= MaxVolumes {
		return refuse(op, storage.KindNoSpace, subject, "the cluster has %d volumes, the limit; delete some first", MaxVolumes)
	}
	if err := s.mayProvision(op, subject, 0, c.SizeBytes, c.ProvisionPercent); err != nil {
		return err
	}
	groups := s.stripe(s.lastVolume+1, c.Groups)
	if len(groups) == 0 {
		return refuse(op, storage.KindUnavailable, subject,
			"no group is ready yet; wait until `storagectl status` shows one, then try again")
	}
	s.lastVolume++
	v := storage.Volume{ID: s.lastVolume, Name: c.Name, SizeBytes: c.SizeBytes, Groups: groups, Epoch: 1, Generation: 1,
		Fenced: 1, State: storage.VolumeReady, CreatedAt: c.At.UTC(), RequestID: c.RequestID, Limits: c.Limits, Labels: c.Labels}
	v = s.changeVolume(v)
	res.Volume = &v
	return nil
}

// readyGroups returns the groups that may hold data, ascending.
func (s *State) readyGroups() []storage.GroupID {
	return keysOf(s.groups, func(g *storage.Group) bool { return g.State == storage.GroupReady })
}

// StripeGroups returns how many groups a volume of this size is striped over unless its creator asks for another number. It
// is one for each StripeBytes or part of them, rounded up to a power of two. Few groups keep a small volume's requests
// together, so that they share batches, syncs and frames, and the loss of a group affects few volumes. Many groups give a
// large volume the space and the speed of more disks.
func StripeGroups(sizeBytes int64) int {
	n := 1
	for n < MaxVolumeGroups && int64(n)*StripeBytes < sizeBytes {
		n *= 2
	}
	return n
}

// stripe chooses n groups for a volume, or the largest power of two of those that are ready. It takes the groups that the
// existing volumes may fill least, and begins at the one in which the fewest volumes begin. First extents are written most
// (file systems keep their superblock and journal there), so they must not all lie in one group.
func (s *State) stripe(id storage.VolumeID, n int) []storage.GroupID {
	groups := s.readyGroups()
	if len(groups) == 0 {
		return nil
	}
	if n == 0 {
		n = MaxVolumeGroups
	}
	for n > len(groups) {
		n /= 2
	}
	groups = rotate(groups, int(uint64(id-1)%uint64(len(groups)))) // where all are equal, volumes take turns
	bytes, begun := s.promised()
	slices.SortStableFunc(groups, func(a, b storage.GroupID) int { return cmp.Compare(bytes[a], bytes[b]) })
	groups = groups[:n]
	first := 0
	for i, g := range groups {
		if begun[g] < begun[groups[first]] {
			first = i
		}
	}
	return rotate(groups, first)
}

// rotate returns a copy of groups that begins with the i-th.
func rotate(groups []storage.GroupID, i int) []storage.GroupID {
	return slices.Concat(groups[i:], groups[:i])
}

// promised returns for every group how many bytes the volumes may fill in it, and how many volumes begin in it.
func (s *State) promised() (bytes map[storage.GroupID]int64, begun map[storage.GroupID]int) {
	bytes, begun = map[storage.GroupID]int64{}, map[storage.GroupID]int{}
	for _, v := range s.volumes {
		for _, g := range v.Groups {
			bytes[g] += v.SizeBytes / int64(len(v.Groups))
		}
		begun[v.Groups[0]]++
	}
	return bytes, begun
}

// volume finds the volume of a command. Volumes that are being deleted are found by id only.
func (s *State) volume(op string, ref storage.VolumeRef) (storage.Volume, error) {
	v, ok := s.Volume(ref.ID)
	if ref.Name != "" {
		v, ok = s.VolumeByName(ref.Name)
	}
	if !ok {
		return storage.Volume{}, refuse(op, storage.KindNotFound, ref.String(),
			"there is no such volume; `storagectl volume list` shows those there are")
	}
	return v, nil
}

// readyVolume finds the volume of a command that changes it.
func (s *State) readyVolume(op string, ref storage.VolumeRef) (storage.Volume, error) {
	v, err := s.volume(op, ref)
	if err == nil && v.State != storage.VolumeReady {
		err = refuse(op, storage.KindConflict, "volume "+v.Name, "it is being deleted; its name is free for another when that is done")
	}
	return v, err
}

// edit applies a command that changes a ready volume by change, which reports whether anything differs.
func (s *State) edit(op string, ref storage.VolumeRef, res *Result, change func(*storage.Volume) (bool, error)) error {
	v, err := s.readyVolume(op, ref)
	if err != nil {
		return err
	}
	differs, err := change(&v)
	if err != nil {
		return err
	}
	if differs {
		v = s.changeVolume(v)
	}
	res.Volume = &v
	return nil
}

func (c ResizeVolume) apply(s *State, res *Result) error {
	const op = "resize"
	return s.edit(op, c.Volume, res, func(v *storage.Volume) (bool, error) {
		before, subject := v.SizeBytes, "volume "+v.Name
		if c.SizeBytes < before {
			return false, refuse(op, storage.KindInvalid, subject,
				"it has %d bytes and cannot shrink to %d, which would cut off data; create a smaller volume and copy into it",
				before, c.SizeBytes)
		}
		if c.SizeBytes == before {
			return false, nil
		}
		v.SizeBytes = c.SizeBytes
		return true, s.mayProvision(op, subject, before, c.SizeBytes, c.ProvisionPercent)
	})
}

func (c SetVolumeLimits) apply(s *State, res *Result) error {
	return s.edit("modify", c.Volume, res, func(v *storage.Volume) (bool, error) {
		before := v.Limits
		v.Limits = c.Of(before)
		return v.Limits != before, nil
	})
}

func (c SetVolumeLabels) apply(s *State, res *Result) error {
	const op = "modify"
	return s.edit(op, c.Volume, res, func(v *storage.Volume) (bool, error) {
		before := v.Labels
		if v.Labels = c.Of(before); maps.Equal(v.Labels, before) {
			return false, nil
		}
		if err := storage.CheckLabels(v.Labels); err != nil { // too many
			return false, refuse(op, storage.KindInvalid, "volume "+v.Name, "%w", errors.Unwrap(err))
		}
		return true, nil
	})
}

func (c DeleteVolume) apply(s *State, res *Result) error {
	const op = "delete"
	v, err := s.volume(op, c.Volume)
	if err != nil {
		return err
	}
	if v.State == storage.VolumeReady {
		if at := s.openAt(v.ID); len(at) > 0 {
			return refuse(op, storage.KindConflict, "volume "+v.Name,
				"it is open at %s; unmount and disconnect it there, then try again", listed(at))
		}
		for _, a := range s.AttachmentsOf(v.ID) {
			if !s.givesWay(a) {
				return refuse(op, storage.KindConflict, "volume "+v.Name,
					"it is attached %s by %s since %s; detach it there, then try again", terms(a), a.Holder, since(a))
			}
		}
		for _, a := range s.AttachmentsOf(v.ID) {
			s.endAttachment(a)
		}
		v.State = storage.VolumeDeleting
		v = s.changeVolume(v)
	}
	res.Volume = &v
	return nil
}

// openAt names the gateways with live sessions on the volume, each once, in the order of their sessions.
func (s *State) openAt(id storage.VolumeID) []string {
	var at []string
	for _, x := range s.SessionsOf(id) {
		if x.State != SessionLive {
			continue
		}
		name := x.Gateway.String()
		if n, ok := s.nodes[x.Gateway.Node]; ok {
			name = "node " + n.Name
		}
		if !slices.Contains(at, name) {
			at = append(at, name)
		}
	}
	return at
}

func (c FinishDelete) apply(s *State, _ *Result) error {
	const op = "finish deleting volume"
	subject := "volume " + c.Volume.String()
	v, ok := s.volumes[c.Volume]
	switch {
	case !ok && c.Volume <= s.lastVolume && c.Volume > 0:
		return nil
	case !ok:
		return refuse(op, storage.KindNotFound, subject, "there never was such a volume")
	case v.State != storage.VolumeDeleting:
		return refuse(op, storage.KindConflict, subject, "it is not being deleted")
	}
	for _, x := range s.SessionsOf(v.ID) {
		s.dropSession(x.ID)
	}
	s.dropVolume(v.ID)
	return nil
}
