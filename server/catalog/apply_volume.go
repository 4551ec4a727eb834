package catalog

import (
	"slices"

	storage "github.com/storaged/storaged"
)

func (c CreateVolume) apply(s *State, tx *change) error {
	const op = "create"
	subject := "volume " + c.Name
	if id, ok := s.volumeByRequest[c.RequestID]; ok && c.RequestID != "" {
		v := s.volumes[id].clone()
		if v.Name != c.Name || v.SizeBytes != c.SizeBytes || v.State != VolumeReady || v.Limits != c.Limits {
			return refuse(op, storage.KindConflict, subject,
				"request id %q made volume %s of %d bytes (%s), or it was changed since; use a new request id for another volume", c.RequestID, v.Name,
				v.SizeBytes, v.State)
		}
		tx.result.Volume = &v
		return nil
	}
	if old, ok := s.VolumeByName(c.Name); ok {
		return refuse(op, storage.KindExists, subject,
			"a volume of this name exists with %d bytes; choose another name, or delete it first", old.SizeBytes)
	}
	if len(s.volumes) >= MaxVolumes {
		return refuse(op, storage.KindNoSpace, subject, "the cluster has %d volumes, the limit; delete some first", MaxVolumes)
	}
	groups := stripe(s.lastVolume+1, s.readyGroups())
	if len(groups) == 0 {
		return refuse(op, storage.KindUnavailable, subject,
			"no group is ready yet; wait until `storagectl status` shows one, then try again")
	}
	s.lastVolume++
	v := Volume{ID: s.lastVolume, Name: c.Name, SizeBytes: c.SizeBytes, Groups: groups, Epoch: 1, Generation: 1,
		Fenced: 1, State: VolumeReady, CreatedAt: c.At.UTC(), RequestID: c.RequestID, Limits: c.Limits}
	v = s.changeVolume(v)
	tx.result.Volume = &v
	tx.volume(VolumeChanged, v.ID)
	return nil
}

// readyGroups returns the groups that may hold data, ascending.
func (s *State) readyGroups() []storage.GroupID {
	var ids []storage.GroupID
	for id, g := range s.groups {
		if g.State == GroupReady {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// stripe chooses the groups of a volume: the largest power of two that there are, up to MaxVolumeGroups, beginning
// at another group for every volume. First extents are written most (file systems keep their superblock and journal
// there), so they must not all lie in one group.
func stripe(id storage.VolumeID, ready []storage.GroupID) []storage.GroupID {
	if len(ready) == 0 {
		return nil
	}
	n := 1
	for n*2 <= min(len(ready), MaxVolumeGroups) {
		n *= 2
	}
	groups := make([]storage.GroupID, n)
	for i := range groups {
		groups[i] = ready[(uint64(id-1)+uint64(i))%uint64(len(ready))]
	}
	return groups
}

// volume finds the volume of a command. Volumes that are being deleted are found by id only.
func (s *State) volume(op string, ref VolumeRef) (Volume, error) {
	v, ok := s.Volume(ref.ID)
	if ref.Name != "" {
		v, ok = s.VolumeByName(ref.Name)
	}
	if !ok {
		return Volume{}, refuse(op, storage.KindNotFound, ref.String(),
			"there is no such volume; `storagectl volume list` shows those there are")
	}
	return v, nil
}

func (c ResizeVolume) apply(s *State, tx *change) error {
	const op = "resize"
	v, err := s.volume(op, c.Volume)
	if err != nil {
		return err
	}
	subject := "volume " + v.Name
	if v.State != VolumeReady {
		return refuse(op, storage.KindConflict, subject, "it is being deleted")
	}
	if c.SizeBytes < v.SizeBytes {
		return refuse(op, storage.KindInvalid, subject,
			"it has %d bytes and cannot shrink to %d, which would cut off data; create a smaller volume and copy into it",
			v.SizeBytes, c.SizeBytes)
	}
	if c.SizeBytes != v.SizeBytes {
		v.SizeBytes = c.SizeBytes
		v = s.changeVolume(v)
		tx.volume(VolumeChanged, v.ID)
	}
	tx.result.Volume = &v
	return nil
}

func (c SetVolumeLimits) apply(s *State, tx *change) error {
	const op = "modify"
	v, err := s.volume(op, c.Volume)
	if err != nil {
		return err
	}
	if v.State != VolumeReady {
		return refuse(op, storage.KindConflict, "volume "+v.Name, "it is being deleted")
	}
	if l := c.of(v.Limits); l != v.Limits {
		v.Limits = l
		v = s.changeVolume(v)
		tx.volume(VolumeChanged, v.ID)
	}
	tx.result.Volume = &v
	return nil
}

func (c DeleteVolume) apply(s *State, tx *change) error {
	const op = "delete"
	v, err := s.volume(op, c.Volume)
	if err != nil {
		return err
	}
	if v.State == VolumeReady {
		if at := s.openAt(v.ID); len(at) > 0 {
			return refuse(op, storage.KindConflict, "volume "+v.Name,
				"it is open at %s; unmount and disconnect it there, then try again", listed(at))
		}
		for _, a := range s.AttachmentsOf(v.ID) {
			if !s.givesWay(a) {
				return refuse(op, storage.KindConflict, "volume "+v.Name,
					"it is attached %s by %s since %s; detach it there, then try again", a.Access, a.Holder, since(a))
			}
		}
		for _, a := range s.AttachmentsOf(v.ID) {
			s.endAttachment(a, tx)
		}
		v.State = VolumeDeleting
		v = s.changeVolume(v)
		tx.volume(VolumeChanged, v.ID)
	}
	tx.result.Volume = &v
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

func (c FinishDelete) apply(s *State, tx *change) error {
	const op = "finish deleting volume"
	subject := "volume " + c.Volume.String()
	v, ok := s.volumes[c.Volume]
	switch {
	case !ok && c.Volume <= s.lastVolume && c.Volume > 0:
		return nil
	case !ok:
		return refuse(op, storage.KindNotFound, subject, "there never was such a volume")
	case v.State != VolumeDeleting:
		return refuse(op, storage.KindConflict, subject, "it is not being deleted")
	}
	for _, x := range s.SessionsOf(v.ID) {
		s.dropSession(x.ID)
		tx.session(SessionGone, x.ID)
	}
	s.dropVolume(v.ID)
	tx.volume(VolumeGone, v.ID)
	return nil
}
