"""The suites that every plugin for forebay must pass."""

from forebay_conformance._checks import Check as Check
from forebay_conformance._failure import ConformanceFailure as ConformanceFailure
from forebay_conformance._kinds import KIND_LIST as KIND_LIST
from forebay_conformance._kinds import Kind as Kind
from forebay_conformance._kinds import kind_named as kind_named
from forebay_conformance._probe import Opener as Opener
from forebay_conformance._rules import RULES as RULES
from forebay_conformance._rules import RULES_VERSION as RULES_VERSION
from forebay_conformance._rules import Rule as Rule
from forebay_conformance._rules import rules_of as rules_of
from forebay_conformance._run import Result as Result
from forebay_conformance._run import run_check as run_check
from forebay_conformance._run import run_checks as run_checks
from forebay_conformance._suites import ControllerSuite as ControllerSuite
from forebay_conformance._suites import DeadLetterStoreSuite as DeadLetterStoreSuite
from forebay_conformance._suites import SinkSuite as SinkSuite
from forebay_conformance._suites import SourceSuite as SourceSuite
from forebay_conformance._suites import StateStoreSuite as StateStoreSuite
from forebay_conformance._traits import ControllerTraits as ControllerTraits
from forebay_conformance._traits import DeadLetterStoreTraits as DeadLetterStoreTraits
from forebay_conformance._traits import SinkTraits as SinkTraits
from forebay_conformance._traits import SourceTraits as SourceTraits
from forebay_conformance._traits import StateStoreTraits as StateStoreTraits
from forebay_conformance._traits import Traits as Traits
