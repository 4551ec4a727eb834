package extent

// Manifest is a checkpoint that another replica pulls.
type Manifest struct{}

// Close ends the pull.
func (m *Manifest) Close() {}
