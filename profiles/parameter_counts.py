"""How many parameters a model has, in total and by group."""

from dataclasses import astuple, dataclass

from profiles.architecture import Architecture, Experts


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters by group. A tied head has none of its own; experts include their router; norms are all norms."""

    embeddings: int
    head: int
    attention: int
    mlp: int
    experts: int
    norms: int
    other: int

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(astuple(self))


def parameter_counts(arch: Architecture) -> ParameterCounts:
    """Exact parameter counts of an architecture by group."""
    return ParameterCounts(
        embeddings=_embeddings(arch),
        head=0 if arch.tied else arch.head.num_parameters,
        attention=_attention(arch),
        mlp=sum(block.count * block.mlp.num_parameters for block in arch.blocks if not isinstance(block.mlp, Experts)),
        experts=sum(block.count * block.mlp.num_parameters for block in arch.blocks if isinstance(block.mlp, Experts)),
        norms=_norms(arch),
        other=arch.other_parameters,
    )


def _embeddings(arch: Architecture) -> int:
    tables = sum(table.num_parameters for table in arch.embeddings)
    return tables + sum(projection.num_parameters for projection in arch.embedding_projections)


def _attention(arch: Architecture) -> int:
    layers = sum(
        block.count * attention.num_parameters
        for block in arch.blocks
        for attention in (block.attention, block.cross_attention)
        if attention is not None
    )
    return layers + sum(table.num_parameters for table in arch.position_biases)


def _norms(arch: Architecture) -> int:
    outside = sum(norm.num_parameters for norm in (arch.embedding_norm, *arch.final_norms) if norm is not None)
    return outside + sum(block.count * norm.num_parameters for block in arch.blocks for norm in block.norms)
